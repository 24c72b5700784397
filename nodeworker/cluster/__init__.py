"""Where pods and networks come from: the edge between planning and whatever knows the cluster."""
