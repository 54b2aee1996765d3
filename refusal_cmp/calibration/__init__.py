"""Strengths at which plans do equal damage, and the curves of what they do on the way.

`damage` says how much an edit changes the model's own answers, `passes` measures many plans in few passes, `varied`
makes a plan of any strength, `search` finds the strength that meets a budget, and `curves` sweeps them.
"""
