//! `strftime_now`: today's date for templates that tell the model what day it is.

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Formats a time in seconds since 1970 (UTC) as C's `strftime` does.
///
/// # Errors
/// A conversion that no chat template is known to use.
pub(super) fn format(format: &str, now: u64) -> Result<String, Error> {
    let (days, seconds) = (now / SECONDS_PER_DAY, now % SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[((days + 4) % 7) as usize];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('d') => out += &format!("{day:02}"),
            Some('m') => out += &format!("{month:02}"),
            Some('Y') => out += &format!("{year}"),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('b') => out += &month_name[..3],
            Some('B') => out += month_name,
            Some('a') => out += &weekday[..3],
            Some('A') => out += weekday,
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => out.push('%'),
            other => {
                let conversion = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now does not support %{conversion}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// Year, month (1 to 12) and day of the month of a day since 1970-01-01, in the
/// Gregorian calendar: Howard Hinnant's `civil_from_days` for days after 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_by_strftime() {
        for (now, pattern, wanted) in [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_782_400, "%F %A", "2000-02-29 Tuesday"),
            (4_107_542_400, "%d/%m/%y %a", "01/03/00 Mon"),
            (1_735_689_599, "%B %d, %Y %T %I%p %%", "December 31, 2024 23:59:59 11PM %"),
        ] {
            assert_eq!(format(pattern, now).unwrap(), wanted);
        }
        let error = format("%Q", 0).unwrap_err().to_string();
        assert!(error.contains("strftime_now does not support %Q"), "{error}");
    }
}
