"""The configuration: dataclasses (`schema`) and the strict reader and writer of recipes (`load`)."""
