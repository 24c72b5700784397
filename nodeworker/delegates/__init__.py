"""What a CNI runtime owes the plugins it calls: configurations, versions, execution, results."""
