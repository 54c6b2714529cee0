"""Settings: YAML to dataclasses (`schema`), finding kinds by name (`kinds`), and the settings of
models and runs.
"""
