"""Released weights of other projects, recognised by what their files hold and read into our
parts.
"""
