"""The command line: `app` finds the verb, and there is one file for each."""
