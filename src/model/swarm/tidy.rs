//! What a spec says, as Go writes it: what is nothing is left out where Docker's types leave it out, and is there where they do
//! not. A spec is kept as it was said, so that what was meant is never lost; this is how it is shown.

use serde_json::{Map, Value, json};

/// Maps whose keys and values are people's own.
const MAPS: [&str; 4] = ["Labels", "Sysctls", "Options", "DriverOpts"];
/// Switches that tell "no" from "not said".
const SAID: [&str; 2] = ["Init", "Disable"];
/// Numbers that tell zero from "not said", or are shown although they are zero.
const NUMBERS: [&str; 10] = [
    "StopGracePeriod",
    "Replicas",
    "MaxConcurrent",
    "TotalCompletions",
    "MaxAttempts",
    "ForceUpdate",
    "Parallelism",
    "MaxFailureRatio",
    "Mode",
    "Soft",
];
/// Members whose types have no "omitempty" on anything.
const WHOLE: [&str; 3] = ["File", "CredentialSpec", "SELinuxContext"];

/// Of a spec, by the name of the member that it stands under.
pub fn tidy(value: &mut Value, name: &str) {
    match value {
        Value::Object(members) if WHOLE.contains(&name) => whole(members, name),
        Value::Object(members) if !MAPS.contains(&name) => {
            members.iter_mut().for_each(|(name, value)| tidy(value, name));
            // Of these zero is a time as good as any.
            let is_restart = name == "RestartPolicy";
            members.retain(|name, value| is_shown(name, value, is_restart));
            amend(members, name);
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| tidy(item, name));
            if name == "Preferences" {
                items.retain(|item| item.get("Spread").is_some());
            }
        }
        // Go writes 1, and not 1.0.
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|it| it.fract() == 0.0 && it.abs() < 1e15);
            if let Some(whole) = whole {
                *value = json!(whole as i64);
            }
        }
        _ => {}
    }
}

fn is_shown(name: &str, value: &Value, is_restart: bool) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(is) => *is || SAID.contains(&name),
        Value::Number(number) => number.as_f64() != Some(0.0) || NUMBERS.contains(&name) || is_restart,
        Value::Object(members) => !members.is_empty() || !MAPS.contains(&name),
    }
}

/// Go's defaults, and members that Docker reads and does not keep.
fn amend(members: &mut Map<String, Value>, name: &str) {
    let mut default = |key: &str, value: Value| {
        members.entry(key).or_insert(value);
    };
    match name {
        "RestartPolicy" => {
            default("Condition", json!("any"));
            default("MaxAttempts", json!(0));
        }
        "UpdateConfig" | "RollbackConfig" => {
            default("Parallelism", json!(0));
            default("MaxFailureRatio", json!(0));
            default("Order", json!("stop-first"));
            default("FailureAction", json!("pause"));
        }
        "Mounts" => {
            default("Type", json!("bind"));
            members.remove("Consistency");
            // Options of nothing are none.
            if members.get("BindOptions").is_some_and(|options| *options == json!({})) {
                members.remove("BindOptions");
            }
        }
        "Privileges" => {
            default("CredentialSpec", Value::Null);
            default("SELinuxContext", Value::Null);
            default("NoNewPrivileges", json!(false));
        }
        _ => {}
    }
}

fn whole(members: &mut Map<String, Value>, name: &str) {
    let all = match name {
        "File" => json!({ "Name": "", "UID": "", "GID": "", "Mode": 0 }),
        "CredentialSpec" => json!({ "Config": "", "File": "", "Registry": "" }),
        _ => json!({ "Disable": false, "User": "", "Role": "", "Type": "", "Level": "" }),
    };
    for (key, nothing) in all.as_object().into_iter().flatten() {
        let member = members.entry(key).or_insert(Value::Null);
        if member.is_null() {
            *member = nothing.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out_and_zero_is_told_from_it() {
        let mut spec = json!({
            "ContainerSpec": { "Env": [], "TTY": false, "Init": false, "Labels": {}, "Dir": "", "StopGracePeriod": 0,
                "Sysctls": { "a": "" }, "Args": [""], "Secrets": [{ "File": { "Name": "x" } }], "Privileges": {},
                "Mounts": [{ "Type": "bind", "Target": "/a", "BindOptions": { "Propagation": "" }, "TmpfsOptions": {} }] },
            "RestartPolicy": { "Delay": 0 }, "Resources": { "Limits": { "NanoCPUs": 0 } }, "Placement": { "MaxReplicas": 0 },
            "UpdateConfig": { "Delay": 0, "MaxFailureRatio": 1.0 },
        });
        tidy(&mut spec, "");
        assert_eq!(
            spec,
            json!({
                "ContainerSpec": { "Init": false, "StopGracePeriod": 0, "Sysctls": { "a": "" }, "Args": [""],
                    "Secrets": [{ "File": { "Name": "x", "UID": "", "GID": "", "Mode": 0 } }],
                    "Privileges": { "CredentialSpec": null, "SELinuxContext": null, "NoNewPrivileges": false },
                    "Mounts": [{ "Type": "bind", "Target": "/a", "TmpfsOptions": {} }] },
                "RestartPolicy": { "Delay": 0, "Condition": "any", "MaxAttempts": 0 }, "Resources": { "Limits": {} },
                "Placement": {},
                "UpdateConfig": { "MaxFailureRatio": 1, "Parallelism": 0, "Order": "stop-first", "FailureAction": "pause" },
            })
        );
    }
}
