"""The type of what is kept as JSON: descriptions, tables, the attributes of a group."""

from typing import Any

JsonObject = dict[str, Any]
"""One JSON object. What reads it checks its values, for they come from a file."""
