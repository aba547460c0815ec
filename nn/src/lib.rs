//! Models, adapters, weights, tokenizers, chat templates and sampling of planish.
