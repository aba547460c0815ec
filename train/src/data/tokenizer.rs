//! [`TextEncoder`] of the engine's own tokenizer.

use planish_nn::template::{ChatOptions, Message, encode_chat};
use planish_nn::tokenizer::Tokenizer;

use super::error::TextError;
use super::row::{ChatExtras, ChatMessage};
use super::text::{RenderedChat, Rendering, TextEncoder};

impl TextEncoder for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        Ok(Tokenizer::encode(self, text, true)?)
    }

    fn encode_piece(&self, text: &str) -> Result<Vec<u32>, TextError> {
        Ok(Tokenizer::encode(self, text, false)?)
    }

    fn encode_chat(
        &self,
        messages: &[ChatMessage],
        extras: &ChatExtras,
        how: Rendering,
    ) -> Result<RenderedChat, TextError> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|m| Message { role: m.role.clone(), content: m.content.clone(), extra: m.extra.clone() })
            .collect();
        let options = ChatOptions {
            add_generation_prompt: how.add_generation_prompt,
            return_assistant_tokens_mask: how.return_assistant_tokens_mask,
            tools: extras.tools.clone(),
            extra: extras.kwargs.clone(),
            now: i64::try_from(how.now).ok(),
            ..ChatOptions::default()
        };
        let chat = encode_chat(self, &messages, &options)?;
        Ok(RenderedChat { ids: chat.ids, message: chat.message, assistant: chat.assistant })
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        Ok(Tokenizer::decode(self, ids, false)?)
    }

    fn template(&self) -> Option<&str> {
        // One that is broken is there, too: what is wrong with it is said when it is used.
        self.chat_template_source()
    }

    fn bos(&self) -> Option<u32> {
        self.bos_token_id()
    }

    fn eos(&self) -> Option<u32> {
        self.eos_token_id()
    }

    fn eos_ids(&self) -> &[u32] {
        self.eos_token_ids()
    }

    fn vocab_size(&self) -> usize {
        Tokenizer::vocab_size(self)
    }
}
