"""Starting policies: small models that this project makes itself."""
