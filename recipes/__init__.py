"""Research recipes, outside the package: how the packaged tiny models were trained."""
