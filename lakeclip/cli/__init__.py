"""The command line: `app` dispatches to one module per verb."""
