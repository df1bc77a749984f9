"""The only package that touches the inside of distributed: calls by address, and tasks."""
