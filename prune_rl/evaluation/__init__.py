"""Playing policies in the real environment, and filming them."""
