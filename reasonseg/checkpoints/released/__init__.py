"""Released formats of other projects. One file a format, recognised by what its files hold."""
