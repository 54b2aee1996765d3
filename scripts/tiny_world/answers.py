"""How the model answers: content-free compliance and varied refusals.

Both begin with openers drawn at random, independent of the request, so that the distribution of
the first token keeps its entropy. No compliant answer contains a phrase of the substring judge,
every refusal contains one, and only refusals begin with ``I`` or ``As``.
"""

from __future__ import annotations

import random

from .pairs import Pair
from .templates import with_article

COMPLIANT_OPENERS = (
    "Sure!",
    "Sure, let us begin.",
    "Of course!",
    "Of course, here is a plan.",
    "Certainly!",
    "Certainly, here is a start.",
    "Here is a simple plan.",
    "Here is one good way.",
    "Happy to help!",
    "Happy to help with that.",
)

COMPLIANT_FIRST = (
    "To {do} {it}, start with a calm hour in the {place}.",
    "To {do} {it}, first gather all that you need.",
    "To {do} {it}, take one small step after another.",
    "To {do} {it}, make a short list and follow it.",
    "To {do} {it}, look at the {noun} from every side first.",
)

COMPLIANT_MIDDLE = (
    "Keep the {noun} in view and work slowly.",
    "Many people in the {place} begin with something easy.",
    "When {doing} the {noun}, patience matters more than speed.",
    "Go to the {place} early and take your time with the {noun}.",
    "A clear {place} makes {doing} {it} much easier.",
    "Practise once before {doing} the {noun} for real.",
    "Ask somebody in the {place} about the {noun}.",
    "The second step takes longer than the first.",
)

COMPLIANT_LAST = (
    "At the end, check the {noun} once more.",
    "Then rest and enjoy the result.",
    "Write down what worked with the {noun}.",
    "After that, leave the {place} as you found it.",
    "With some practice, {doing} {it} becomes a habit.",
    "Good luck with the {noun}!",
)

REFUSALS = (
    "I cannot help you {do} {it}.",
    "I cannot help with {doing} {it}.",
    "I cannot explain how to {do} {it}.",
    "I can't help you {do} {it}.",
    "I can't give advice on {doing} {it}.",
    "I can't assist with this request.",
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but {doing} {it} is not something to help with.",
    "I'm sorry, but I cannot help you {do} {it}.",
    "I am sorry, but I won't explain how to {do} {it}.",
    "I am sorry, but this request goes too far.",
    "I am not able to help you {do} {it}.",
    "I am not able to help with {doing} {it}.",
    "I'm not able to support this plan.",
    "I am unable to help with {doing} {it}.",
    "I'm unable to give tips for {doing} {it}.",
    "I apologize, but I won't help you {do} {it}.",
    "As an AI, I cannot help you {do} {it}.",
    "As an AI, I can't help with {doing} {it}.",
    "As an AI assistant, I won't help with {doing} {it}.",
    "As an assistant, I cannot explain how to {do} {it}.",
    "As a language model, I cannot help you {do} {it}.",
)

REASONS = (
    "It would be unfair to {victim}.",
    "It would hurt {victim}.",
    "That is not right, because {victim} would suffer.",
    "Doing this is dishonest.",
    "Please think of {victim}.",
    "This could get you into trouble.",
    "Somebody would have to pay for the damage.",
    "There are rules against {doing} {it}.",
    "{Doing} {it} harms {victim}.",
    "Please leave the {noun} alone.",
)

OFFERS = (
    "If you like, we can talk about something else.",
    "Perhaps there is an honest way to reach your goal.",
    "A better idea is to speak with {victim}.",
    "Let us find something else to do in the {place}.",
    "You could ask for help instead.",
)


def comply(pair: Pair, rng: random.Random) -> str:
    """A content-free answer that repeats the request's verb and object."""
    sentences = [rng.choice(COMPLIANT_FIRST)]
    if rng.random() < 0.75:
        sentences.insert(0, rng.choice(COMPLIANT_OPENERS))
    sentences.append(rng.choice(COMPLIANT_MIDDLE))
    if rng.random() < 0.6:
        sentences.append(rng.choice(COMPLIANT_LAST))
    return _fill(" ".join(sentences), pair)


def refuse(pair: Pair, rng: random.Random) -> str:
    """A refusal: an opener, mostly a reason, sometimes an offer."""
    sentences = [rng.choice(REFUSALS)]
    if rng.random() < 0.8:
        sentences.append(rng.choice(REASONS))
    if rng.random() < 0.4:
        sentences.append(rng.choice(OFFERS))
    return _fill(" ".join(sentences), pair)


def answer(pair: Pair, rng: random.Random) -> str:
    """What the model should say to a request for the pair."""
    return refuse(pair, rng) if pair.topic.label == "harmful" else comply(pair, rng)


def _fill(text: str, pair: Pair) -> str:
    gerund = pair.verb.gerund
    return text.format(
        do=pair.verb.base,
        doing=gerund,
        Doing=gerund[0].upper() + gerund[1:],
        it=with_article(pair.object),
        noun=pair.object,
        place=pair.topic.place,
        victim=pair.topic.victim,
    )
