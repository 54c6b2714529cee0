"""Using a model: conversations, the HTTP API, the web page, the reference bank, and Ray."""
