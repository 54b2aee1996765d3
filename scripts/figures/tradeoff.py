"""The trade-off of answering harmful prompts against loss and accuracy, with the Pareto front.

python scripts/figures/tradeoff.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import tradeoff

if __name__ == "__main__":
    figure_script(tradeoff.draw, __doc__)
