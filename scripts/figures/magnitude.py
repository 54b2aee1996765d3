"""The magnitude study: projection on the direction against refusal, prompt by prompt.

python scripts/figures/magnitude.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import magnitude

if __name__ == "__main__":
    figure_script(magnitude.draw, __doc__)
