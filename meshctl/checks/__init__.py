"""What `meshctl check` looks at, one function for each row or few rows."""
