//! Numbers as Go writes them.

/// As `%v` and `%g` have a float: the shortest digits that read back the same, with an exponent below -4 and from 6 on.
pub(super) fn shortest(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if number == 0.0 {
        return if number.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    match !(-4..6).contains(&exponent) {
        true => format!("{digits}{}", exponent_of(exponent)),
        false => format!("{number}"),
    }
}

/// As `%e` has it, with so many digits behind the point.
pub(super) fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{digits}{}", exponent_of(exponent.parse().unwrap_or_default()))
}

fn exponent_of(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.unsigned_abs())
}
