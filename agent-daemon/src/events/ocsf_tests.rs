//! A strict validator over the published schema, and its own tests. The pipeline's tests run it over
//! every kind of event.
//!
//! `ocsf_schema.json` is the OCSF 1.8.0 schema (<https://github.com/ocsf/ocsf-schema>, Apache-2.0) as
//! its server exports it, reduced to what Ambit writes. Strict means: an attribute that the class or
//! object does not have, one of a profile that the event does not declare, a deprecated one, a
//! missing required one, a wrong type, an enumeration value that does not exist, a text that its
//! type's pattern does not match, and a constraint that is not met are each an error.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("ocsf_schema.json")).unwrap());

/// Everything that is wrong with an event.
pub(crate) fn violations(event: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let uid = &event["class_uid"];
    let Some(class) =
        SCHEMA["classes"].as_object().unwrap().values().find(|class| class["uid"] == *uid)
    else {
        return vec![format!("class_uid {uid} is not in the schema")];
    };
    let declared: Vec<&str> = event["metadata"]["profiles"]
        .as_array()
        .map(|profiles| profiles.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    for profile in &declared {
        if !class["profiles"].as_array().unwrap().contains(&json!(profile)) {
            found.push(format!("profile {profile} does not belong to the class"));
        }
    }
    if event["category_uid"] != class["category_uid"] {
        found.push("category_uid is not the class's".to_owned());
    }
    let type_uid = uid.as_u64().unwrap() * 100 + event["activity_id"].as_u64().unwrap_or(0);
    if event["type_uid"] != json!(type_uid) {
        found.push("type_uid is not class_uid * 100 + activity_id".to_owned());
    }
    if event["metadata"]["version"] != SCHEMA["version"] {
        found.push("metadata.version is not the schema's".to_owned());
    }
    if event["activity_id"] == 99 && !event["activity_name"].is_string() {
        found.push("activity Other has no activity_name".to_owned());
    }
    entity("", event, class, &declared, &mut found);
    found
}

fn entity(at: &str, value: &Value, schema: &Value, profiles: &[&str], found: &mut Vec<String>) {
    let Some(members) = value.as_object() else {
        found.push(format!("{at} is no object"));
        return;
    };
    let attributes = schema["attributes"].as_object().unwrap();
    let applies = |attribute: &Value| match attribute["profiles"].as_array() {
        None => true,
        Some(of) => of.iter().any(|p| profiles.contains(&p.as_str().unwrap())),
    };
    for (name, member) in members {
        let here = format!("{at}.{name}");
        match attributes.get(name) {
            None => found.push(format!("{here} is unknown")),
            Some(attribute) if !applies(attribute) => {
                found.push(format!("{here} belongs to a profile that is not declared"));
            }
            Some(attribute) if attribute["deprecated"] == true => {
                found.push(format!("{here} is deprecated"));
            }
            Some(attribute) if attribute["array"] == true => match member.as_array() {
                None => found.push(format!("{here} is no array")),
                Some(items) => {
                    for item in items {
                        typed(&here, item, attribute, profiles, found);
                    }
                }
            },
            Some(attribute) => typed(&here, member, attribute, profiles, found),
        }
    }
    for (name, attribute) in attributes {
        if attribute["requirement"] == "required"
            && applies(attribute)
            && !members.contains_key(name)
        {
            found.push(format!("{at}.{name} is required and missing"));
        }
    }
    if let Some(any) = schema["constraints"]["at_least_one"].as_array()
        && !any.iter().any(|name| members.contains_key(name.as_str().unwrap()))
    {
        found.push(format!("{at} needs at least one of {any:?}"));
    }
}

fn typed(at: &str, value: &Value, attribute: &Value, profiles: &[&str], found: &mut Vec<String>) {
    let name = attribute["type"].as_str().unwrap();
    if name == "object_t" {
        let object = attribute["object"].as_str().unwrap();
        match SCHEMA["objects"].get(object) {
            // The open object holds anything: that is what it is for.
            Some(_) if object == "object" => {
                if !value.is_object() {
                    found.push(format!("{at} is no object"));
                }
            }
            Some(schema) => entity(at, value, schema, profiles, found),
            None => found.push(format!("{at}: object {object} is not in the reduced schema")),
        }
        return;
    }
    let of = &SCHEMA["types"][name];
    let base = of["type"].as_str().unwrap_or(name);
    let right = match base {
        "boolean_t" => value.is_boolean(),
        "integer_t" | "long_t" => value.is_i64(),
        "float_t" => value.is_number(),
        "string_t" => value.is_string(),
        "json_t" => true,
        other => panic!("type {other}"),
    };
    if !right {
        found.push(format!("{at} is not of type {name}"));
        return;
    }
    if let Some(values) = attribute["enum"].as_array()
        && !values.contains(value)
    {
        found.push(format!("{at}: {value} is not in the enumeration"));
    }
    if let (Some(pattern), Some(text)) = (of["regex"].as_str(), value.as_str())
        && !Regex::new(pattern).unwrap().is_match(text)
    {
        found.push(format!("{at}: {text:?} does not look like {name}"));
    }
    if let (Some(longest), Some(text)) = (of["max_len"].as_u64(), value.as_str())
        && text.len() as u64 > longest
    {
        found.push(format!("{at} is longer than {longest}"));
    }
    if let (Some(range), Some(number)) = (of["range"].as_array(), value.as_i64())
        && !(range[0].as_i64().unwrap()..=range[1].as_i64().unwrap()).contains(&number)
    {
        found.push(format!("{at}: {number} is out of range"));
    }
}

fn valid() -> Value {
    json!({
        "time": 1, "class_uid": 1008, "category_uid": 1, "activity_id": 6, "type_uid": 100806,
        "severity_id": 1, "log_name": "x",
        "metadata": {"version": "1.8.0", "product": {"name": "x"}, "profiles": ["host"]},
        "device": {"type_id": 0, "hostname": "h"},
    })
}

#[test]
fn the_validator_accepts_a_valid_event_and_anything_in_unmapped() {
    let mut event = valid();
    assert_eq!(violations(&event), Vec::<String>::new());
    event["unmapped"] = json!({"a": {"b": [1, null]}});
    assert_eq!(violations(&event), Vec::<String>::new());
}

#[test]
fn the_validator_refuses_each_kind_of_mistake() {
    let cases: [(&str, Value, &str); 10] = [
        ("/nonsense", json!(1), "is unknown"),
        ("/severity_id", json!(42), "enumeration"),
        ("/time", json!("1"), "not of type"),
        ("/action_id", json!(1), "not declared"),
        ("/device", json!({"hostname": "h"}), "required and missing"),
        ("/device", json!({"type_id": 0}), "at least one"),
        ("/device", json!({"type_id": 0, "hostname": "h", "x": 1}), ".device.x is unknown"),
        ("/device", json!({"type_id": 0, "ip": "not an address"}), "does not look like"),
        ("/type_uid", json!(100_801), "type_uid"),
        ("/actor", json!({"process": {"pid": 1, "tid": 1}}), "deprecated"),
    ];
    for (pointer, value, expected) in cases {
        let mut event = valid();
        event[&pointer[1..]] = value;
        let found = violations(&event);
        assert!(found.iter().any(|v| v.contains(expected)), "{pointer}: {found:?}");
    }
}
