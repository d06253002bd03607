"""How good a model is: scores, and the page that shows them.

encode      images and texts to unit-length features
labels      a label column to class names and targets
prompts     class names to sentences
zeroshot    classification by the nearest class prompt
retrieval   images to captions and back
gallery     examples of retrieval, to look at
history     what a run recorded while it trained
charts      curves and large confusion matrices as SVG
report      report.html
lake_page   what is in a lake, for `lakeclip inspect --html`
"""
