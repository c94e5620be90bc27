"""All examples, one after the other, and a table over them: `python -m examples`, or `make demo`."""

from examples import autoencoder, breast_cancer, colours, digits, language_model, language_model_head, wine
from examples.command_line import main

main(
    digits.program,
    breast_cancer.program,
    wine.program,
    autoencoder.program,
    colours.program,
    language_model.program,
    language_model_head.program,
)
