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
embedding_map  where a model puts images
forgetting  what was known before, and after
significance   whether a difference is more than chance
comparison  several runs side by side
pages/      all of it for people: reports, cards, what is in a lake or in a batch
"""
