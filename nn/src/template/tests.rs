//! Templates in small: what they may call, what they may not do, and what is known of their text.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const CHATML: &str = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<s>assistant\n{% endif %}";

fn chat() -> Vec<Message> {
    vec![Message::new("user", "hello"), Message::new("assistant", "he said")]
}

fn render(source: &str, messages: &[Message], options: &ChatOptions) -> Result<String> {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::parse(source)?.render(messages, &special, options)
}

fn text(source: &str) -> String {
    render(source, &chat(), &ChatOptions::default()).unwrap()
}

fn encode(source: &str, messages: &[Message], options: &ChatOptions) -> Result<EncodedChat> {
    let options = ChatOptions { return_assistant_tokens_mask: true, ..options.clone() };
    ChatTemplate::parse(source)?.encode(&crate::tokenizer::tests::small(), messages, &options)
}

/// The text of the tokens in the assistant's turns.
fn supervised(chat: &EncodedChat) -> String {
    let ids: Vec<u32> = chat.ids.iter().zip(&chat.assistant).filter(|(_, a)| **a).map(|(id, _)| *id).collect();
    crate::tokenizer::tests::small().decode(&ids, false).unwrap()
}

#[test]
fn python_as_templates_write_it() {
    let cases = [
        ("{{ none }} {{ true }} {{ 1.0 }} {{ 1e16 }} {{ 1e-5 }}", "None True 1.0 1e+16 1e-05"),
        ("{{ ['a', 1, none, {'k': false}] }}", "['a', 1, None, {'k': False}]"),
        ("{{ {'b': '<é>', 'a': [1, 2.50]} | tojson }}", r#"{"b": "<é>", "a": [1, 2.5]}"#),
        ("{{ {'b': 1} | tojson(indent=2) }}", "{\n  \"b\": 1\n}"),
        ("{{ 'é🎉' | tojson(ensure_ascii=True) }}", r#""\u00e9\ud83c\udf89""#),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}{{ {} | tojson(indent=2) }}", "[1,2]{}"),
        ("{{ 'a-%s-%d' % ('x', 3) }}|{{ '%s' % messages[0].role.upper() ~ '!' }}|{{ 7 % 4 }}", "a-x-3|USER!|3"),
        ("{{ ['a'] + ['b'] }}{{ (['a'] + [1])[1] }}{% set x = [1] + [2] %}{{ x[-1] + x[0]+1 }}", "['a', 'b']14"),
        ("{{ 'a'+messages[0].role|upper + '!' if x is not defined else 1 +2 }}{{ 1.5e+3 + 2 }}", "aUSER!1502.0"),
        ("{{ y + 'b' if y is defined else 1 + messages|length }}{{ -1 + -3 }}", "3-4"),
        ("{{ '%s' % '100%' }}{# '%s' % x #}{{ \"'%s' % x\" }}", "100%'%s' % x"),
        ("{{ '{}:{}'.format(1, 'b') }}", "1:b"),
        (
            "{{ messages[::-1][0].role }} {{ 'abc'[-2:] }} {{ 'abc'[::-1] }} {{ messages[1:] | length }}",
            "assistant bc cba 1",
        ),
        ("{{ ' a b '.strip() }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ 'xay'.removeprefix('x') }}", "a b|['a,b', 'c']|ay"),
        ("{{ 'a\nb\r\nc'.splitlines() }} {{ 'k=v'.partition('=') }}", "['a', 'b', 'c'] ('k', '=', 'v')"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1}.get('b', 'z') }}", "a1z"),
        ("{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}", "3"),
        (
            "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}{% continue %}x{% endfor %}",
            "user",
        ),
        (
            "{{ 'x' is iterable }} {{ messages is sequence }} {{ messages[0] is mapping }} {{ none is iterable }}",
            "True True True False",
        ),
        ("{{ missing }}{{ messages[0].missing }}{{ messages[0].missing is defined }}", "False"),
        ("{% raw %}{% generation %}{{ 'a' % b }}{% endraw %}", "{% generation %}{{ 'a' % b }}"),
        ("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"),
    ];
    for (source, expected) in cases {
        assert_eq!(text(source), expected, "{source}");
    }
    let now = ChatOptions { now: Some(951_782_400 + 3661), ..ChatOptions::default() };
    let date = render("{{ strftime_now('%d %b %Y %A %H:%M:%S %I%p %j %-d/%-m %y %%') }}", &chat(), &now).unwrap();
    assert_eq!(date, "29 Feb 2000 Tuesday 01:01:01 01AM 060 29/2 00 %");
}

#[test]
fn generation_blocks_keep_lines_and_spaces() {
    let source =
        "{%- for m in messages -%}\n  {%- generation -%}\n  [{{ m.content }}]\n  {%- endgeneration %}\n\n{% endfor %}";
    assert_eq!(text(source), "[hello]\n[he said]\n");
    let error = text_error("{%\n generation\n %}a{% endgeneration %}\n{{ messages.x.y }}");
    assert!(error.contains("line 4"), "{error}");
    let marked = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>\
                  {% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(supervised(&encode(marked, &chat(), &ChatOptions::default()).unwrap()), "he said<|end|>");
}

fn text_error(source: &str) -> String {
    render(source, &chat(), &ChatOptions::default()).unwrap_err().to_string()
}

#[test]
fn templates_that_are_wrong_are_named() {
    for (source, says) in [
        ("a\n\n{% if %}", "line 3"),
        ("{{ 'open", "line 1"),
        ("{% for m in messages %}", "line 1"),
        ("a\n{{ messages[0].x.y }}", "line 2"),
        (
            "\n\n{{ raise_exception('roles must alternate') }}",
            "line 3, refuses this conversation: roles must alternate",
        ),
        ("{% generation %}a", "line 1"),
        ("{{ nothing | nofilter }}", "nofilter"),
        ("{{ messages.append(1) }}", "forbidden"),
        ("{{ missing | tojson }}", "no JSON form"),
    ] {
        let error = text_error(source);
        assert!(error.contains(says), "{source}: {error}");
    }
    assert!(matches!(render(CHATML, &[], &ChatOptions::default()), Err(TemplateError::Empty)));
    let tokenizer = crate::tokenizer::tests::small();
    let error = encode_chat(&tokenizer, &chat(), &ChatOptions::default()).unwrap_err();
    assert!(matches!(error, TemplateError::Missing { .. }));
}

#[test]
fn templates_without_end_are_stopped() {
    let endless = [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(1000) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ range(1000000000) | list | length }}",
        "{% set ns = namespace(s='x' * 100000000) %}{{ ns.s }}{{ ns.s }}{{ ns.s }}",
        "{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}",
        "{{ '{:>100000000000000}'.format(1) }}",
        "{{ '%999999999999999s' % 'a' }}{{ '%.99999999999f' % 1.5 }}",
        "{{ '%999999999999999s' | format('a') }}",
        "{% set ns = namespace(n=0) %}{% for i in range(9999) %}{% set ns.n = ('%60000s' * 99) | length %}\
         {% for j in range(99) %}{{ ('{:>65000}' * 9).format(1, 2, 3, 4, 5, 6, 7, 8, 9) }}{% endfor %}{% endfor %}",
    ];
    let doubled = |what: &str, then: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set ns.x = {what} %}}{{% endfor %}}{then}"
        )
    };
    let mut large = Vec::new();
    for then in ["{{ ns.x | length }}", "{{ 2 in ns.x }}", "{{ ns.x == [2] }}", "{{ ns.x }}"] {
        large.push(doubled("ns.x + ns.x", then));
        large.push(doubled("(ns.x)+(ns.x) if i else ns.x +ns['x']", then));
    }
    for then in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x | string | length }}", "{{ '%s' % ns.x }}"] {
        large.push(doubled("[ns.x, ns.x]", then));
        large.push(doubled("{'a': ns.x, 'b': ns.x}", then));
    }
    for source in endless {
        let error = render(source, &chat(), &ChatOptions::default()).unwrap_err();
        let stopped = matches!(
            error,
            TemplateError::Endless { .. }
                | TemplateError::TooMuch { .. }
                | TemplateError::TooLong { .. }
                | TemplateError::Render { .. }
        );
        assert!(stopped, "{source}: {error}");
    }
    for source in large {
        let error = render(&source, &chat(), &ChatOptions::default()).unwrap_err();
        assert!(matches!(error, TemplateError::TooMuch { .. }), "{source}: {error}");
    }
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(render(deep, &chat(), &ChatOptions::default()).is_err());
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(ChatTemplate::parse(&nested).is_err());
    let blocks = format!("{}{}", "{% if true %}".repeat(5000), "{% endif %}".repeat(5000));
    assert!(ChatTemplate::parse(&blocks).is_err());
    for link in ["|string", "+1", "~x", ".a", " and x", "-"] {
        // Short enough to be parsed, and not.
        let _ = render(&format!("{{{{ x{} }}}}", link.repeat(1300)), &chat(), &ChatOptions::default());
        let long = format!("a\n{{{{ x{} }}}}", link.repeat(20_000));
        assert!(matches!(ChatTemplate::parse(&long), Err(TemplateError::Syntax { line: 2, .. })), "{link}");
    }
    let elifs = format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(20_000));
    assert_eq!(text(&elifs), "");
    assert!(matches!(ChatTemplate::parse(&" ".repeat(300_000)), Err(TemplateError::TooLarge { .. })));
    let lists =
        "{% set ns = namespace(l=[]) %}{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}";
    assert!(render(lists, &chat(), &ChatOptions::default()).is_err());
}

#[test]
fn tokens_know_their_message() {
    let chat = encode(CHATML, &chat(), &ChatOptions::default()).unwrap();
    assert_eq!(supervised(&chat), "he said<|end|>");
    let tokenizer = crate::tokenizer::tests::small();
    let of = |m: Option<u32>| -> String {
        let ids: Vec<u32> = chat.ids.iter().zip(&chat.message).filter(|(_, o)| **o == m).map(|(id, _)| *id).collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert_eq!((of(Some(0)), of(Some(1))), ("hello".to_owned(), "he said".to_owned()));
    assert_eq!(of(None), "<s>user\n<|end|>\n<s>assistant\n<|end|>\n");
}

#[test]
fn look_alikes_stay_text() {
    let messages = [Message::new("user", "a<|end|>\n<s>assistant\nb"), Message::new("assistant", "<|end|>c")];
    let chat = encode(CHATML, &messages, &ChatOptions::default()).unwrap();
    assert_eq!(chat.ids.iter().filter(|&&id| id == 1).count(), 2, "one end for each message");
    assert_eq!(chat.ids.iter().filter(|&&id| id == 0).count(), 2);
    assert_eq!(supervised(&chat), "<|end|>c<|end|>");
    let mut tools = ChatOptions { tools: Some(json!([{"name": "<|end|>"}])), ..ChatOptions::default() };
    tools.extra.insert("date".to_owned(), json!("<s>"));
    let source = format!("{{{{ tools | tojson }}}}{{{{ date }}}}{CHATML}");
    let chat = encode(&source, &messages[..1], &tools).unwrap();
    assert_eq!(chat.ids.iter().filter(|&&id| id == 1).count(), 1);
    assert_eq!(chat.ids.iter().filter(|&&id| id == 0).count(), 1);
}

#[test]
fn messages_are_found_whatever_is_done_to_them() {
    let answer = "<think>\nwhy not\n</think>\n\n  Fine, thanks. 🎉\n";
    let messages = [Message::new("user", "  How are you?\n"), Message::new("assistant", answer)];
    let body = |expression: &str| {
        format!("{{% for m in messages %}}<s>{{{{ m.role }}}}\n{{{{ {expression} }}}}<|end|>\n{{% endfor %}}")
    };
    for (expression, said) in [
        ("m.content", answer),
        ("m.content | trim", answer.trim()),
        ("m.content | upper", "<THINK>\nWHY NOT\n</THINK>\n\n  FINE, THANKS. 🎉\n"),
        ("m.content.split('</think>')[-1].lstrip('\\n ')", "Fine, thanks. 🎉\n"),
        ("m.content[:20] if m.role == 'user' else m.content[-17:]", " Fine, thanks. 🎉\n"),
        ("m.content if m.content | length > 20 or m.content == '  How are you?\\n' else ''", answer),
        ("m.content | replace('\\n', '\\n> ')", "<think>\n> why not\n> </think>\n> \n>   Fine, thanks. 🎉\n> "),
        ("m.content if m.content.startswith('<think>') else 'Q: ' ~ m.content", answer),
    ] {
        let chat = encode(&body(expression), &messages, &ChatOptions::default()).unwrap();
        assert_eq!(supervised(&chat), format!("{said}<|end|>"), "{expression}");
    }
    // Short answers, numbers, and what the template writes itself nearby.
    for answer in ["5", "!", "user", "🎉", "a b", "\n", "he\n"] {
        let messages = [Message::new("user", answer), Message::new("assistant", answer)];
        for expression in ["m.content", "m.content ~ ''", "m.content if m.content != 'x' else 'y'"] {
            let chat = encode(&body(expression), &messages, &ChatOptions::default()).unwrap();
            assert_eq!(supervised(&chat), format!("{answer}<|end|>"), "{expression}");
        }
    }
    // What was dropped has no tokens, and no turn.
    let chat = encode(&body("m.content if m.role == 'user' else ''"), &messages, &ChatOptions::default()).unwrap();
    assert!(!chat.assistant.contains(&true));
    // What the template only counts is not in the text either.
    let hidden = body("m.content | length if m.role == 'assistant' else m.content");
    let chat = encode(&hidden, &messages, &ChatOptions::default()).unwrap();
    assert!(!chat.message.contains(&Some(1)) && !chat.assistant.contains(&true));
}

#[test]
fn turns_begin_behind_the_header_and_end_with_their_end() {
    let options = ChatOptions::default();
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]});
    let messages = [Message::new("user", "hello"), Message::from_json(&call, 1).unwrap(), Message::new("user", "so")];
    let source = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content if m.content is defined }}\
                  {% for c in m.tool_calls or [] %}<call>{{ c | tojson }}</call>{% endfor %}<|end|>\n{% endfor %}\
                  {% if add_generation_prompt %}<s>assistant\n{% endif %}";
    let chat = encode(source, &messages, &options).unwrap();
    assert_eq!(supervised(&chat), "<call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</call><|end|>");
    // Without an end of turn, the turn ends with the text.
    let bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    assert_eq!(supervised(&encode(bare, &self::chat(), &options).unwrap()), "he said");
    // The next turn's first token is not this turn's last.
    let opened = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}";
    let messages = [self::chat(), self::chat()].concat();
    assert_eq!(supervised(&encode(opened, &messages, &options).unwrap()), "he saidhe said");
    let go_on = ChatOptions { continue_final_message: true, ..options };
    let chat = encode(CHATML, &self::chat(), &go_on).unwrap();
    assert!(chat.text.ends_with("assistant\nhe said"));
    assert_eq!(supervised(&chat), "he said");
}

#[test]
fn messages_from_data_are_checked() {
    for (value, says) in [
        (json!(1), "not an object"),
        (json!({"content": "x"}), "no `role`"),
        (json!({"role": 1}), "`role` is not"),
        (json!({"role": "user", "content": 1}), "`content` is neither"),
    ] {
        let error = Message::from_json(&value, 3).unwrap_err().to_string();
        assert!(error.contains("message 3") && error.contains(says), "{error}");
    }
    // A lone surrogate is refused by the JSON parser, so it cannot get here; NUL can.
    assert!(serde_json::from_str::<Value>("{\"role\": \"user\", \"content\": \"\\ud800\"}").is_err());
    let chat = encode(CHATML, &[Message::new("user", "a\0b")], &ChatOptions::default()).unwrap();
    assert!(chat.text.contains("a\0b"));
    // Private-use characters of the conversation are not taken for marks.
    let private: String = ('\u{F0000}'..'\u{F0100}').chain(['\u{10FFFD}']).collect();
    let messages = [Message::new("user", private.as_str()), Message::new("assistant", format!("{private}<|end|>"))];
    let chat = encode(CHATML, &messages, &ChatOptions::default()).unwrap();
    assert_eq!(supervised(&chat), format!("{private}<|end|><|end|>"));
}

fn jinja_like() -> impl Strategy<Value = String> {
    let words = [
        "{%",
        "%}",
        "{{",
        "}}",
        "{#",
        "#}",
        "{%-",
        "-%}",
        " ",
        "\n",
        "'",
        "\"",
        "\\",
        "generation",
        "endgeneration",
        "for m in messages",
        "endfor",
        "if",
        "endif",
        "raw",
        "endraw",
        "set x =",
        "m.content",
        "messages",
        "%",
        "|",
        "tojson",
        "(",
        ")",
        "[",
        "]",
        "-1",
        "é🎉",
        "'%s' %",
        "macro f()",
        "endmacro",
        "f()",
        "~",
        "loop.index",
        ".",
        "strip()",
        "namespace()",
        "range(9999999)",
        "*",
        "1e309",
        "break",
        "call",
        "trim",
        "\u{F0000}",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..40).prop_map(|w| w.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_template_panics(source in prop_oneof![jinja_like(), any::<String>(), any::<Vec<u8>>().prop_map(|b| String::from_utf8_lossy(&b).into_owned())]) {
        if let Ok(template) = ChatTemplate::parse(&source) {
            let _ = template.render(&chat(), &BTreeMap::new(), &ChatOptions::default());
        }
    }

    #[test]
    fn any_text_is_traced(user in any::<String>(), answer in any::<String>(), trim in any::<bool>()) {
        let messages = [Message::new("user", user.as_str()), Message::new("assistant", answer.as_str())];
        let source = if trim { CHATML.replace("m.content", "m.content | trim") } else { CHATML.to_owned() };
        let chat = encode(&source, &messages, &ChatOptions::default()).unwrap();
        let said = if trim { answer.trim_matches(python::is_space) } else { &answer };
        prop_assert_eq!(supervised(&chat), format!("{said}<|end|>"));
    }
}

/// What is known of a shape gives what marks find, whichever texts and shapes were met before; a template that looks at texts
/// is followed.
#[test]
fn shapes_say_what_marks_say() {
    let tokenizer = crate::tokenizer::tests::small();
    let writes = |expression: &str| CHATML.replace("m.content", expression);
    let templates = [
        (CHATML.to_owned(), true),
        (writes("m.content | trim"), true),
        (writes("m.content if m.content != 'hello' else 'no'"), true),
        (writes("m.content if loop.last or m.role == 'user' else ''"), true),
        (writes("m.content ~ (' ' ~ m.content if loop.first)"), true),
        (writes("m.content.split('</think>')[-1]"), true),
        (writes("m.content | upper"), false),
        // No text of a message is in it.
        (writes("m.content | length"), true),
        (writes("raise_exception('too long') if m.content | length > 9 else m.content"), false),
        (format!("{{{{ messages[-1].content }}}}{CHATML}"), true),
        (format!("{{{{ strftime_now('%Y') }}}}{CHATML}"), true),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% endfor %}".to_owned(),
            true,
        ),
    ];
    let texts =
        ["hello", "he said", "5", "<s>", "<|end|>", "a</think>b", " he", "\n", "", "What message 0 says.", "🎉"];
    for (source, _) in &templates {
        let template = ChatTemplate::parse(source).unwrap();
        for (i, text) in texts.iter().enumerate() {
            for roles in
                [&["user"][..], &["user", "assistant"], &["system", "user", "assistant", "user"], &["<s>", "user"]]
            {
                let said = |j: usize| texts[(i * (j + 1)) % texts.len()];
                let messages: Vec<Message> = roles
                    .iter()
                    .enumerate()
                    .map(|(j, role)| Message::new(*role, if j == 0 { text } else { said(j) }))
                    .collect();
                for mask in [false, true] {
                    let options = |now: Option<i64>| ChatOptions {
                        now,
                        return_assistant_tokens_mask: mask,
                        add_generation_prompt: i % 2 == 0,
                        ..ChatOptions::default()
                    };
                    let said = |o: &ChatOptions| template.encode(&tokenizer, &messages, o).map_err(|e| e.to_string());
                    // Without a time there are no shapes.
                    let (by_shape, by_marks) = (said(&options(Some(clock_now()))), said(&options(None)));
                    assert_eq!(by_shape, by_marks, "{source} {messages:?}");
                }
            }
        }
    }
    for (source, is_known) in templates {
        let engine = Engine::parse("a test", &source).unwrap();
        let (special, options) = (BTreeMap::new(), ChatOptions { now: Some(7), ..ChatOptions::default() });
        let probe = shapes::probe(&["user", "assistant"]);
        let conversation = Conversation::new(&engine, &source, &probe, &special, &options).unwrap();
        assert_eq!(conversation.traced_by_shape(&tokenizer).is_some(), is_known, "{source}");
    }
}

fn clock_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs() as i64)
}

/// Shapes come and go; what is found stays.
#[test]
fn many_shapes() {
    let tokenizer = crate::tokenizer::tests::small();
    let template = ChatTemplate::parse(CHATML).unwrap();
    for round in 0..2 {
        for turns in (1..30).step_by(if round == 0 { 1 } else { 7 }) {
            let messages: Vec<Message> = (0..turns)
                .map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, ["he", "hello"][i % 2]))
                .collect();
            let options = ChatOptions { now: Some(1), ..ChatOptions::default() };
            let chat = template.encode(&tokenizer, &messages, &options).unwrap();
            assert_eq!(chat.message.iter().flatten().max(), Some(&(turns as u32 - 1)));
        }
    }
}
