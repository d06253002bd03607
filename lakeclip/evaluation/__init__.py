"""How good a model is: scores, and the page that shows them.

encode      images and texts to unit-length features
labels      a label column to class names and targets
prompts     class names to sentences
zeroshot    classification by the nearest class prompt
retrieval   images to captions and back
gallery     examples of retrieval, to look at
embedding_map  where a model puts images
history     what a run recorded while it trained
account     what became of a run's rows
facts       where a model comes from, as a table
charts      curves as SVG
report      report.html
card        MODEL_CARD.md
significance   whether a difference is more than chance
comparison  several runs side by side
comparison_page  … as a page
lake_page   what is in a lake, for `lakeclip inspect --html`
"""
