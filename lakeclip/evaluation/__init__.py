"""How good a model is: scores, and the page that shows them.

encode      images and texts to unit-length features
labels      a label column to class names and targets
labelled    the rows that have a label, as features and targets
prompts     class names to sentences
classifier  sentences to a classifier, and what it answers
remembered  classifiers of earlier evaluations, on the disk
zeroshot    classification by the nearest class prompt, scored
calibration what the model says of its answers, and what they are
retrieval   images to captions and back
probe       a line through the features
robustness  zero-shot on copies made worse, and on other lakes
corruptions how they are made worse
plots       results as pictures
gallery     examples of retrieval, to look at
history     what a run recorded while it trained
charts      curves and large confusion matrices as SVG
report      report.html
lake_page   what is in a lake, for `lakeclip inspect --html`
"""
