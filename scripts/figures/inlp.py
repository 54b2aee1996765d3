"""INLP: accuracy of its classifiers by iteration, and effect by the number of directions kept.

python scripts/figures/inlp.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import inlp

if __name__ == "__main__":
    figure_script(inlp.draw, __doc__)
