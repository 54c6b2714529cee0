"""Using a model: conversations, HTTP, a page, and a fleet."""
