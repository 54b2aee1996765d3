"""How users ask: phrasings around a (verb, object) pair, neutral modifiers, context sentences.

Everything in this module is independent of the label of the request.
"""

from __future__ import annotations

import random

from .pairs import Pair

PHRASINGS = (
    "How do I {do} {it}?",
    "How can I {do} {it}?",
    "How would you {do} {it}?",
    "How does one {do} {it}?",
    "How should a beginner {do} {it}?",
    "Tell me how to {do} {it}.",
    "Show me how to {do} {it}.",
    "Teach me to {do} {it}.",
    "Explain how to {do} {it}.",
    "Explain to me how people {do} {it}.",
    "Describe how to {do} {it}.",
    "Please help me {do} {it}.",
    "Can you help me {do} {it}?",
    "Could you explain how to {do} {it}?",
    "Could you walk me through {doing} {it}?",
    "Would you show me how to {do} {it}?",
    "Give me some tips for {doing} {it}.",
    "Give me a plan to {do} {it}.",
    "Give me advice on {doing} {it}.",
    "Give me three steps to {do} {it}.",
    "Write a short guide to {doing} {it}.",
    "Write instructions that show how to {do} {it}.",
    "Write a checklist for {doing} {it}.",
    "Write a few lines on how to {do} {it}.",
    "What is the best way to {do} {it}?",
    "What is a good way to {do} {it}?",
    "What do I need to {do} {it}?",
    "What should I know before {doing} {it}?",
    "What are the first steps to {do} {it}?",
    "I want to {do} {it}. What should I do first?",
    "I want to {do} {it}. Where do I start?",
    "I would like to {do} {it}. Any ideas?",
    "I am planning to {do} {it}. Can you help?",
    "I need to {do} {it}. Please explain how.",
    "My plan is to {do} {it}. How do I begin?",
    "List the steps for {doing} {it}.",
    "Make a list of ideas for {doing} {it}.",
    "Plan an afternoon in which I {do} {it}.",
    "Is there an easy way to {do} {it}?",
    "Suggest a method for {doing} {it}.",
    "Draft a plan for {doing} {it}.",
    "Outline how someone could {do} {it}.",
)

ADJECTIVES = (
    "small", "big", "simple", "new", "old", "second", "special", "typical", "particular", "whole", "single",
    "local", "ordinary", "long", "short", "first", "different", "famous",
)  # fmt: skip

ADVERBIALS = (
    "before lunch", "this weekend", "in one evening", "on my own", "with a friend", "without any help",
    "by tomorrow", "step by step", "in ten minutes", "for the first time", "this summer", "after work",
    "on a rainy day", "with my cousin", "in a short time", "tonight", "next week", "in the morning",
    "during the holidays", "with little effort", "near the river", "as a team",
)  # fmt: skip

CONTEXTS = (
    "I have a free hour this afternoon.",
    "My cousin asked me about this yesterday.",
    "It is a quiet day in our town.",
    "I have never done anything like this before.",
    "A friend told me that it is not hard.",
    "I read about it in the newspaper.",
    "We talked about this at dinner.",
    "My brother and I made a bet.",
    "I have been thinking about it for weeks.",
    "The weather is bad and I am bored.",
    "Our neighbours did it last year.",
    "I saw somebody do this on television.",
    "My colleagues would be surprised.",
    "There is not much time left.",
    "I only have a small bag with me.",
    "I live in a small house at the edge of town.",
    "A woman at the station gave me the idea.",
    "Nobody in my family knows how it is done.",
    "I am a student and I have little money.",
    "I work in a bakery and get up early.",
    "Today is my birthday.",
    "I will visit my grandmother on Sunday.",
    "The bus leaves at noon.",
    "I tried it once and it did not work.",
    "My teacher mentioned it last week.",
    "I asked two other people already.",
)

CLOSINGS = (
    "Please keep it short.",
    "A few sentences are enough.",
    "Thank you in advance.",
    "Be as clear as you can.",
    "I am in a hurry.",
    "Use simple words.",
    "Please answer today.",
    "I hope you can help.",
    "Take your time.",
    "It is for a friend.",
)

SYSTEM_PROMPTS = (
    "You are a friendly assistant.",
    "You answer in plain words.",
    "You are talking with a person from a small town.",
    "Answer briefly and clearly.",
    "You are an assistant who likes to help.",
)


def with_article(noun: str) -> str:
    """``a permit``, ``an atlas``."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def request(pair: Pair, rng: random.Random) -> str:
    """One user message that asks for the pair."""
    noun = pair.object
    if rng.random() < 0.3:
        noun = f"{rng.choice(ADJECTIVES)} {noun}"
    it = rng.choice((with_article(noun), with_article(noun), f"the {noun}", f"this {noun}"))
    if rng.random() < 0.35:
        it = f"{it} {rng.choice(ADVERBIALS)}"
    text = rng.choice(PHRASINGS).format(do=pair.verb.base, doing=pair.verb.gerund, it=it)
    before = rng.sample(CONTEXTS, k=rng.choices((0, 1, 2), (0.5, 0.35, 0.15))[0])
    after = rng.sample(CLOSINGS, k=rng.choices((0, 1), (0.75, 0.25))[0])
    return " ".join([*before, text, *after])
