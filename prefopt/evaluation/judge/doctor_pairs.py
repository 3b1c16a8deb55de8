"""Requests with an answer that is plainly good and one that is plainly bad, for probing judges."""

PAIRS: tuple[tuple[str, str, str], ...] = (
    ("What is the capital of France?", "The capital of France is Paris.", "It is Madrid."),
    ("What is 17 plus 25?", "17 plus 25 is 42.", "17 plus 25 is 51."),
    (
        "Name three primary colours.",
        "Red, yellow and blue.",
        "There are many lovely colours in the world, and I like most of them.",
    ),
    (
        "Translate 'good morning' into German.",
        "'Good morning' is 'Guten Morgen' in German.",
        "It means 'bonne nuit'.",
    ),
    (
        "How do I boil an egg so that it is hard?",
        "Put it into boiling water for about ten minutes, then cool it under cold water.",
        "Put the egg into the freezer overnight and wait until it boils.",
    ),
    (
        "Write one sentence about the sea.",
        "The sea lay grey and calm under the first light of the day.",
        "asdf sea sea sea sea sea sea sea sea",
    ),
    (
        "Why does ice float on water?",
        "Ice is less dense than liquid water, because its molecules stand in an open lattice.",
        "Because ice is heavier than water and the heavy things rise.",
    ),
    (
        "Give me a synonym of 'quick'.",
        "A synonym of 'quick' is 'fast'.",
        "A synonym of 'quick' is 'slow'.",
    ),
    (
        "Which planet is closest to the sun?",
        "Mercury is the planet closest to the sun.",
        "That would be Neptune.",
    ),
    (
        "Sort these numbers from small to large: 9, 2, 5.",
        "2, 5, 9",
        "9, 5, 2, 7",
    ),
    (
        "My friend is sad because her dog died. What could I say to her?",
        "You could say that you are sorry, that he was a good dog, and that you are there for her.",
        "Tell her that it was only a dog and that she should stop crying.",
    ),
    (
        "Is 21 a prime number? Give a reason.",
        "No. 21 is 3 times 7, so it has other divisors than 1 and itself.",
        "Yes, since it is odd.",
    ),
    (
        "Summarise in one sentence: The bakery opens at six and sells out of rolls by nine.",
        "The bakery opens at six and has no rolls left by nine.",
        "A bakery is a place where bread is made, and bread is eaten in many countries.",
    ),
    (
        "What does the Python expression len('abc') give?",
        "It gives 3, the number of characters.",
        "It gives 'abc' backwards.",
    ),
    (
        "How many days does a leap year have?",
        "A leap year has 366 days.",
        "A leap year has 360 days, as every year.",
    ),
    (
        "Suggest a polite way to decline an invitation to dinner.",
        "Thank you for thinking of me. I cannot come that evening, but gladly another day.",
        "No.",
    ),
    (
        "Who wrote the play Hamlet?",
        "William Shakespeare wrote Hamlet.",
        "Hamlet was written by Albert Einstein in 1950.",
    ),
    (
        "Explain what a thermometer does.",
        "A thermometer measures temperature.",
        "I do not feel like explaining that.",
    ),
    (
        "Turn this into a question: The train leaves at noon.",
        "Does the train leave at noon?",
        "The train leaves at noon.",
    ),
    (
        "List two animals that can fly.",
        "Bats and swallows can fly.",
        "Elephants and carp can fly.",
    ),
)
