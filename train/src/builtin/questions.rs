//! Questions about the world and their answers, in a sentence and bare.

use super::dice::Dice;
use super::world::{ANIMALS, Animal, CAPITALS, COLOURS, DAYS, MONTHS, NAMES, NUMBERS, OPPOSITES, PAST, PLACES, WORK};

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Opposite,
    Capital,
    Colour,
    Kind,
    Home,
    Legs,
    Size,
    Past,
    Work,
    Time,
    Sum,
    Number,
    First,
    Last,
    Count,
    Backwards,
    Story,
}

impl Topic {
    pub(super) const ALL: [Topic; 17] = [
        Topic::Opposite,
        Topic::Capital,
        Topic::Colour,
        Topic::Kind,
        Topic::Home,
        Topic::Legs,
        Topic::Size,
        Topic::Past,
        Topic::Work,
        Topic::Time,
        Topic::Sum,
        Topic::Number,
        Topic::First,
        Topic::Last,
        Topic::Count,
        Topic::Backwards,
        Topic::Story,
    ];

    /// The word by which the instruction set names the topic.
    pub(super) fn name(self) -> &'static str {
        match self {
            Topic::Opposite => "opposite",
            Topic::Capital => "capital",
            Topic::Colour => "colour",
            Topic::Kind => "kind",
            Topic::Home => "home",
            Topic::Legs => "legs",
            Topic::Size => "size",
            Topic::Past => "past",
            Topic::Work => "work",
            Topic::Time => "time",
            Topic::Sum => "sum",
            Topic::Number => "number",
            Topic::First => "first",
            Topic::Last => "last",
            Topic::Count => "count",
            Topic::Backwards => "backwards",
            Topic::Story => "story",
        }
    }
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) topic: Topic,
    /// Names the fact that is asked for, whatever the wording: what a held-out split goes by.
    pub(super) fact: String,
    pub(super) prompt: String,
    /// The answer as the pretrained model gives it.
    pub(super) sentence: String,
    /// The answer alone.
    pub(super) answer: String,
}

/// `noun` with its indefinite article.
pub(super) fn a(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// `text` with its first letter in upper case.
pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A random question of `topic`.
pub(super) fn ask(dice: &mut Dice, topic: Topic) -> Question {
    let (fact, wordings, sentence, answer) = match topic {
        Topic::Opposite => opposite(dice),
        Topic::Capital => capital(dice),
        Topic::Colour => colour(dice),
        Topic::Kind | Topic::Home | Topic::Legs => about_animal(dice, topic),
        Topic::Size => size(dice),
        Topic::Past => past(dice),
        Topic::Work => work(dice),
        Topic::Time => time(dice),
        Topic::Sum => sum(dice),
        Topic::Number => number(dice),
        Topic::First | Topic::Last | Topic::Count | Topic::Backwards => list(dice, topic),
        Topic::Story => story(dice),
    };
    let prompt = dice.pick(&wordings).clone();
    Question { topic, fact: format!("{}: {fact}", topic.name()), prompt, sentence, answer }
}

/// Fact, wordings of the question, sentence, bare answer.
type Parts = (String, Vec<String>, String, String);

fn opposite(dice: &mut Dice) -> Parts {
    let &(x, y) = dice.pick(&OPPOSITES);
    let fact = format!("{x} and {y}");
    let (x, y) = if dice.one_in(2) { (y, x) } else { (x, y) };
    let wordings = vec![
        format!("What is the opposite of {x}?"),
        format!("Tell me the opposite of {x}."),
        format!("Which word is the opposite of {x}?"),
    ];
    (fact, wordings, format!("The opposite of {x} is {y}."), y.into())
}

fn capital(dice: &mut Dice) -> Parts {
    let &(country, city) = dice.pick(&CAPITALS);
    if dice.one_in(2) {
        let wordings =
            vec![format!("Which country has the capital {city}?"), format!("{city} is the capital of what?")];
        return (country.into(), wordings, format!("{city} is the capital of {country}."), country.into());
    }
    let wordings = vec![
        format!("What is the capital of {country}?"),
        format!("Tell me the capital of {country}."),
        format!("Which city is the capital of {country}?"),
    ];
    (country.into(), wordings, format!("The capital of {country} is {city}."), city.into())
}

fn colour(dice: &mut Dice) -> Parts {
    let &(thing, colour) = dice.pick(&COLOURS);
    let wordings = vec![
        format!("What colour is {thing}?"),
        format!("Tell me the colour of {thing}."),
        format!("Which colour does {thing} have?"),
    ];
    (thing.into(), wordings, format!("The colour of {thing} is {colour}."), colour.into())
}

fn about_animal(dice: &mut Dice, topic: Topic) -> Parts {
    let Animal { name, kind, home, legs, .. } = dice.pick(&ANIMALS);
    let an = a(name);
    match topic {
        Topic::Kind => {
            let wordings = vec![
                format!("What kind of animal is {an}?"),
                format!("Tell me what kind of animal {an} is."),
                format!("To which kind of animal does {an} belong?"),
            ];
            ((*name).into(), wordings, format!("{} is {}.", capitalised(&an), a(kind)), (*kind).into())
        }
        Topic::Home => {
            let wordings = vec![
                format!("Where does {an} live?"),
                format!("Tell me where {an} lives."),
                format!("What is the home of {an}?"),
            ];
            ((*name).into(), wordings, format!("The home of {an} is the {home}."), (*home).into())
        }
        _ => {
            let wordings = vec![
                format!("How many legs does {an} have?"),
                format!("Tell me how many legs {an} has."),
                format!("Count the legs of {an}."),
            ];
            let legs = NUMBERS[*legs as usize];
            ((*name).into(), wordings, format!("{} has {legs} legs.", capitalised(&an)), legs.into())
        }
    }
}

fn size(dice: &mut Dice) -> Parts {
    let (x, y) = loop {
        let (x, y) = (dice.pick(&ANIMALS), dice.pick(&ANIMALS));
        if x.size != y.size {
            break (x, y);
        }
    };
    let (big, small) = if x.size > y.size { (x.name, y.name) } else { (y.name, x.name) };
    let (x, y) = (a(x.name), a(y.name));
    if dice.one_in(2) {
        let wordings = vec![format!("Which is bigger, {x} or {y}?"), format!("Tell me which is bigger, {x} or {y}.")];
        let sentence = format!("{} is bigger than {}.", capitalised(&a(big)), a(small));
        return (format!("{big} and {small}"), wordings, sentence, big.into());
    }
    let wordings = vec![format!("Which is smaller, {x} or {y}?"), format!("Tell me which is smaller, {x} or {y}.")];
    let sentence = format!("{} is smaller than {}.", capitalised(&a(small)), a(big));
    (format!("{big} and {small}"), wordings, sentence, small.into())
}

fn past(dice: &mut Dice) -> Parts {
    let &(now, past) = dice.pick(&PAST);
    let wordings = vec![
        format!("What is the past of {now}?"),
        format!("Tell me the past of {now}."),
        format!("Put {now} into the past."),
    ];
    (now.into(), wordings, format!("The past of {now} is {past}."), past.into())
}

fn work(dice: &mut Dice) -> Parts {
    let &(worker, product) = dice.pick(&WORK);
    let worker = a(worker);
    let wordings = vec![
        format!("What does {worker} make?"),
        format!("Tell me what {worker} makes."),
        format!("What is the work of {worker}?"),
    ];
    (worker.clone(), wordings, format!("{} makes {product}.", capitalised(&worker)), product.into())
}

fn time(dice: &mut Dice) -> Parts {
    let (what, table): (_, &[&str]) = if dice.one_in(3) { ("day", &DAYS) } else { ("month", &MONTHS) };
    let at = dice.below(table.len());
    let (order, other) = if dice.one_in(2) {
        ("after", (at + 1) % table.len())
    } else {
        ("before", (at + table.len() - 1) % table.len())
    };
    let (this, other) = (table[at], table[other]);
    let (early, late) = if order == "after" { (this, other) } else { (other, this) };
    let wordings = vec![format!("Which {what} comes {order} {this}?"), format!("Tell me the {what} {order} {this}.")];
    (format!("{early} and {late}"), wordings, format!("The {what} {order} {this} is {other}."), other.into())
}

fn sum(dice: &mut Dice) -> Parts {
    let (x, y) = (dice.below(13), dice.below(13));
    if dice.one_in(2) {
        let (x, y) = (x.max(y), x.min(y));
        let wordings = vec![format!("What is {x} minus {y}?"), format!("Take {y} from {x}.")];
        return (format!("{x} - {y}"), wordings, format!("{x} minus {y} is {}.", x - y), (x - y).to_string());
    }
    let wordings = vec![format!("What is {x} plus {y}?"), format!("Add {x} and {y}.")];
    (format!("{} + {}", x.min(y), x.max(y)), wordings, format!("{x} plus {y} is {}.", x + y), (x + y).to_string())
}

fn number(dice: &mut Dice) -> Parts {
    let at = dice.below(NUMBERS.len());
    let (word, digits) = (NUMBERS[at], at.to_string());
    if dice.one_in(2) {
        let wordings = vec![format!("Write {word} in digits."), format!("Which number is {word}?")];
        return (digits.clone(), wordings, format!("{} is {digits}.", capitalised(word)), digits);
    }
    let wordings = vec![format!("Write {digits} as a word."), format!("How do you say {digits}?")];
    (digits.clone(), wordings, format!("{digits} is {word}."), word.into())
}

/// Words that lists are made of.
pub(super) fn list_words(dice: &mut Dice, n: usize) -> Vec<&'static str> {
    let mut words: Vec<&str> = ANIMALS.iter().map(|animal| animal.name).collect();
    words.extend(COLOURS.iter().filter_map(|(thing, _)| thing.split(' ').next_back()));
    words.extend(super::world::THINGS);
    dice.several(&words, n)
}

fn list(dice: &mut Dice, topic: Topic) -> Parts {
    let longest = if topic == Topic::Count { 5 } else { 4 };
    let n = 2 + dice.below(longest - 1);
    let words = list_words(dice, n);
    let list = words.join(", ");
    let (wordings, sentence, answer) = match topic {
        Topic::First => (
            vec![format!("What is the first of {list}?"), format!("Which word is first in {list}?")],
            format!("The first word is {}.", words[0]),
            words[0].to_string(),
        ),
        Topic::Last => (
            vec![format!("What is the last of {list}?"), format!("Which word is last in {list}?")],
            format!("The last word is {}.", words[n - 1]),
            words[n - 1].to_string(),
        ),
        Topic::Count => (
            vec![format!("How many words are in {list}?"), format!("Count the words in {list}.")],
            format!("There are {} words.", NUMBERS[n]),
            NUMBERS[n].to_string(),
        ),
        _ => {
            let back = words.iter().rev().copied().collect::<Vec<_>>().join(", ");
            let wordings = vec![format!("Say {list} backwards."), format!("Turn around {list}.")];
            (wordings, format!("Backwards it is {back}."), back)
        }
    };
    (list, wordings, sentence, answer)
}

fn story(dice: &mut Dice) -> Parts {
    let names = dice.several(&NAMES, 2);
    let things = dice.several(&super::world::THINGS, 2);
    let places = dice.several(&PLACES, 2);
    let (told, wordings, sentence, answer);
    let at = dice.below(2);
    let (name, thing, place) = (names[at], things[at], places[at]);
    if dice.one_in(2) {
        told = format!("{} has the {}. {} has the {}.", names[0], things[0], names[1], things[1]);
        if dice.one_in(2) {
            wordings = vec![format!("{told} Who has the {thing}?")];
            (sentence, answer) = (format!("{name} has the {thing}."), name.to_string());
        } else {
            wordings = vec![format!("{told} What does {name} have?")];
            (sentence, answer) = (format!("{name} has the {thing}."), thing.to_string());
        }
    } else {
        told = format!("{} went to the {}. {} went to the {}.", names[0], places[0], names[1], places[1]);
        if dice.one_in(2) {
            wordings = vec![format!("{told} Who went to the {place}?")];
            (sentence, answer) = (format!("{name} went to the {place}."), name.to_string());
        } else {
            wordings = vec![format!("{told} Where did {name} go?")];
            (sentence, answer) = (format!("{name} went to the {place}."), place.to_string());
        }
    }
    (told, wordings, sentence, answer)
}
