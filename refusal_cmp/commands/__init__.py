"""Commands beside the stages: compare runs, inspect a prompt, export a plan, show progress and tables."""
