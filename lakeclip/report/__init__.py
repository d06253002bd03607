"""HTML pages, plots and model cards for people. Each page is one self-contained file.

run             `make_report`: report.html and MODEL_CARD.md of a run
compare_runs    `compare_runs`: several runs side by side
run_page        report.html as HTML
comparison      records, settings and scores of compared runs
comparison_page a comparison as HTML
lake_page       content of a lake, for `lakeclip inspect --html`
batch_page      content of a training step, for `lakeclip inspect --batch N --html`
model_card      MODEL_CARD.md
run_summary     data, settings and code of a run, as labelled values
data_summary    rows of a run: total, selected, trained on, unusable
curves          metrics of a run over steps, pairs or time
charts          curves as SVG
gallery         examples of retrieval
embedding_map   t-SNE map of images
plots           results as figures for papers
page            templates, and writing pages to files
"""
