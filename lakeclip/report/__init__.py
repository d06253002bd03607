"""Pages for people, each one file that loads nothing.

page        their templates, and how they are written
report      report.html of a run
card        MODEL_CARD.md
comparison_page  several runs side by side
lake_page   what is in a lake, for `lakeclip inspect --html`
batch_page  what a step was made of, for `lakeclip inspect --batch N --html`
facts       where a model comes from, as a table
account     what became of a run's rows
history     what a run recorded while it trained
gallery     examples of retrieval, to look at
charts      curves as SVG
plots       results as pictures
"""
