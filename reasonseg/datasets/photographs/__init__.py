"""Annotated photographs: reading them, varying them, and asking about them."""
