"""The certificate authority: issues X.509-SVIDs."""
