"""Resuming a run: everything that can be wrong is found before anything is written, and each flag is applied exactly.

request   what a user asks for, in the order in which the parts of a run are made
settings  what each setting does on a resume: it is applied, or refused with a way out
plan      checks of the data, the length and the states against the run's checkpoint
commit    files of the run, written once everything is restored
lock      one process per run's folder
"""
