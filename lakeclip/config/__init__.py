"""The configuration: dataclasses (`schema`), recipes in YAML (`load`), and command lines (`command`)."""
