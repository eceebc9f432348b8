"""What demo.py and compare.py share: models, texts, training runs and their results.

setup.py decides what is distilled into what: smollm2.py (a real teacher) or, without a network,
from_scratch.py (a small one trained on the spot).  run.py trains, results.py reports.
"""
