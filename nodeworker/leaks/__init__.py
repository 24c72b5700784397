"""What is held on the node without an owner: the evidence for it, gathered look by look."""
