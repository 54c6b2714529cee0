"""The wordings of questions about drawn scenes."""

FRAMES = (  # for any noun phrase
    "Please segment {}.",
    "Segment {}.",
    "Show me {}.",
    "Find {}.",
    "Mark {}.",
    "Point out {}.",
    "I am looking for {}.",
    "Can you segment {} in this image?",
    "Could you highlight {}?",
    "{}",
)
# not for "what ..." clauses
WHERE_FRAMES = (
    "Where is {}?",
    "Which pixels belong to {}?",
    "Is there a mask for {}?",
)
WHY = (" Explain why.", " Why?", " Say why.", " Please explain your choice.")
DEFINITE = ("The ", "the ")
HINTS = (  # for one to three keywords of a property
    "something to do with {}",
    "the one to do with {}",
    "what {} makes you think of",
    "what goes with {}",
    "the thing linked to {}",
    "whatever has to do with {}",
    "the one that suggests {}",
    "something about {}",
    "a thing of {}",
)
HINTED = 14  # number of wordings by keywords, besides the other wordings of a property

PLACES = {
    "left": ("on the left", "at the left", "to the left"),
    "right": ("on the right", "at the right", "to the right"),
    "top": ("at the top", "in the upper part", "up high"),
    "bottom": ("at the bottom", "in the lower part", "down low"),
}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "near": ("nearest to", "closest to", "next to", "beside"),
    "far": ("farthest from", "most distant from", "far away from"),
}
SUPERLATIVES = {
    "large": ("the largest {}", "the biggest {}", "the {} that takes up the most room"),
    "small": ("the smallest {}", "the tiniest {}", "the {} that takes up the least room"),
    "left": ("the leftmost {}", "the {} farthest to the left"),
    "right": ("the rightmost {}", "the {} farthest to the right"),
    "top": ("the topmost {}", "the highest {}", "the {} closest to the top"),
    "bottom": ("the lowest {}", "the {} closest to the bottom"),
}
