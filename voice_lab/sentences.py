"""Sentences over the word list: templates for training, templates of other shapes for the test, and random words."""
import random
import zlib

NAMES = "Alice Anna David Emma Henry John Laura Mary Peter Robert Sarah Thomas".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty".split()
SEASONS = "spring summer autumn winter".split()
PEOPLE = ("boy brother captain child doctor driver farmer father friend girl king man mother neighbor queen sister "
          "student teacher woman baker").split()
ANIMALS = "bear bird cat chicken cow dog fish horse lion rabbit sheep".split()
THINGS = ("apple ball basket blanket book bottle box cake camera candle chair coat computer door guitar hat key knife "
          "lamp letter map mirror orange paper pencil picture potato radio sandwich shoe table ticket train window "
          "clock").split()
FOOD = "bread breakfast butter cheese coffee dinner milk rice salad soup sugar water".split()
PLACES = ("airport beach bridge church city factory field forest garden hospital hotel house island kitchen library "
          "market mountain museum office restaurant river school station village").split()
ADJECTIVES = ("beautiful big black blue clean cold dirty empty famous good green happy heavy little long loud new old "
              "quiet red sad short simple small strange strong warm white yellow young").split()
ACTS = {"bring": "brings", "buy": "buys", "carry": "carries", "clean": "cleans", "find": "finds", "follow": "follows",
        "forget": "forgets", "hold": "holds", "like": "likes", "move": "moves", "open": "opens", "paint": "paints",
        "play": "plays", "read": "reads", "remember": "remembers", "see": "sees", "sell": "sells", "take": "takes",
        "want": "wants", "wash": "washes", "watch": "watches"}
HABITS = list(ACTS.values()) + "cooks eats loves tastes".split()
MOVES = {"dance": "dances", "run": "runs", "sing": "sings", "sleep": "sleeps", "smile": "smiles", "swim": "swims",
         "travel": "travels", "wait": "waits", "walk": "walks", "work": "works"}
MANNERS = "quickly slowly carefully quietly loudly gently".split()
OFTEN = "always never often sometimes".split()
TIMES = "today tonight tomorrow now again".split()
PARTS = "morning afternoon evening night".split()
WHERE = "above behind beside in inside near on over under".split()
FUNCTION = ("a after birds books cup letters an and are at before can could do does every for from have he hello her his how hundred i in is it "
            "must my name not of on one our please said she thank that the there they think this thousand to very we "
            "what where why will with you").split()
WEATHER = "snow storm wind rain sun cloud".split()

_CLASSES = {"N": NAMES, "D": DAYS, "M": MONTHS, "#": NUMBERS, "S": SEASONS, "p": PEOPLE, "a": ANIMALS, "t": THINGS,
            "f": FOOD, "l": PLACES, "j": ADJECTIVES, "V": HABITS, "v": list(ACTS), "W": list(MOVES.values()),
            "w": list(MOVES), "m": MANNERS, "o": OFTEN, "T": TIMES, "P": PARTS, "r": WHERE, "u": WEATHER}
_CLASSES["b"] = PEOPLE + ANIMALS
_CLASSES["c"] = THINGS + FOOD

TRAINING = [
    "The <j> <b> <V> the <c>.", "The <p> <V> a <j> <t> on <D>.", "<N> <o> <V> the <c> in the <l>.",
    "My <p> <W> <m> <r> the <l>.", "Please <v> the <j> <t> <r> the <t>.", "<N> and <N> will <v> the <j> <c>.",
    "There are <#> <j> birds in the <l>.", "Can you <v> the <t> <T>?", "He will <v> <#> letters in <M>.",
    "She <V> her <j> <t> to the <l>.", "We <w> in the <l> in the <P>.", "The <t> is <r> the <j> <t>.",
    "Where is the <j> <t> of the <p>?", "I think that the <b> is very <j>.", "They <v> <f> and <f> in the <P>.",
    "Her <p> is not <j> <T>.", "The <a> <W> <m> to the <l>.", "Why does the <p> <v> the <j> <t>?",
    "It is <#> hundred and <#>.", "This <t> is for my <p>.", "In <S> we <o> <w> near the <l>.",
    "Thank you for the <j> <t>.", "How could the <b> <w> in the <u>?", "Hello <N>, where are our books?",
    "<N> said that <N> must <v> the <t>.",
]
OTHER_SHAPES = [
    "What could <N> <v> with the <t> from <M>?", "On <D> the <j> <a> will <w> again.", "<#> thousand books are in our <l>.",
    "After <f> the <p> and the <a> <w> <m>.", "You must not <v> that <c> before <D>.", "The <l> behind the <l> is <j> and <j>.",
    "I have <#> letters for the <p> of the <l>.", "She <V> every cup of <f> with a <j> <p>.", "Our <p> <o> <W> there at night.",
    "<N>, please take this <t> from the <a>.",
]

_CAPITALISED = {w.lower(): w for w in NAMES + DAYS + [m for m in MONTHS if m not in ("March", "May")]}
_CAPITALISED["i"] = "I"


def fill(template, rng):
    """A sentence of the template: each <class> becomes a word of it."""
    out, rest = "", template
    while "<" in rest:
        head, rest = rest.split("<", 1)
        name, rest = rest.split(">", 1)
        out += head + rng.choice(_CLASSES[name])
    out += rest
    words = out.split(" ")
    for i in range(len(words) - 1):
        if words[i] in ("a", "A") and words[i + 1][0] in "aeiou":
            words[i] = "the" if words[i] == "a" else "The"
    out = " ".join(words)
    return out[0].upper() + out[1:]


def random_words(words, rng):
    """A run of words of the list in no order: alignment must not lean on the templates."""
    chosen = [_CAPITALISED.get(w, w) for w in rng.choices(words, k=rng.choice((1, 2, 3, 4, 5, 6, 7, 8)))]
    for i in range(len(chosen) - 1):
        if len(chosen) > 3 and rng.random() < 0.06:
            chosen[i] += ","
    text = " ".join(chosen) + rng.choice("....?!")
    return text[0].upper() + text[1:]


def held_out(text):
    """One sentence in 16 is never trained on."""
    return zlib.crc32(text.encode()) % 16 == 0


def word_list(path):
    with open(path, encoding="utf-8") as lines:
        return lines.read().split()


def training(count, words, seed, random_share=0.45):
    """count different sentences, none held out, none of OTHER_SHAPES."""
    rng, seen, out = random.Random(seed), set(), []
    while len(out) < count:
        text = random_words(words, rng) if rng.random() < random_share else fill(rng.choice(TRAINING), rng)
        if text not in seen and not held_out(text):
            seen.add(text)
            out.append(text)
    return out


def test(count, templates, seed):
    """count different held-out sentences of the templates."""
    rng, out = random.Random(seed), []
    while len(out) < count:
        text = fill(rng.choice(templates), rng)
        if held_out(text) and text not in out:
            out.append(text)
    return out
