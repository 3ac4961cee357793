"""What feeds a key, whether it is behind, and how it is moved."""
