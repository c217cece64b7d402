//! How many chips there are, and what share of a dimension each of them gets.

use mesh::MeshError;

/// A T3000 has 8 chips; no sharding plan goes further.
const MAX_CHIPS: usize = 8;

/// The chips of a mesh. Rank `c` owns the `c`-th of equal, contiguous slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chips(usize);

impl Chips {
    /// # Errors
    /// [`MeshError::DoesNotFit`] when `num_chips` is 0 or above 8.
    pub(crate) fn new(num_chips: usize) -> Result<Self, MeshError> {
        if (1..=MAX_CHIPS).contains(&num_chips) {
            Ok(Self(num_chips))
        } else {
            Err(MeshError::DoesNotFit(format!(
                "num_chips is {num_chips}, must be 1 to {MAX_CHIPS}"
            )))
        }
    }

    pub(crate) fn count(self) -> usize {
        self.0
    }

    pub(crate) fn ranks(self) -> std::ops::Range<usize> {
        0..self.0
    }

    /// One chip's share of `size`; `owner` and `axis` are for the error.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when `size` does not divide by the chips.
    pub(crate) fn share(self, owner: &str, axis: &str, size: usize) -> Result<usize, MeshError> {
        if size.is_multiple_of(self.0) {
            Ok(size / self.0)
        } else {
            Err(MeshError::DoesNotFit(format!(
                "{owner} has {size} {axis}, which do not divide by {} chips",
                self.0
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_to_eight_chips_make_a_mesh() {
        for num_chips in 0..12 {
            assert_eq!(Chips::new(num_chips).is_ok(), (1..=8).contains(&num_chips), "{num_chips}");
        }
    }

    #[test]
    fn a_size_that_does_not_divide_is_refused_by_name_and_number() {
        let chips = Chips::new(3).unwrap();
        assert_eq!(chips.share("w", "output channels", 9).unwrap(), 3);
        let message = chips.share("w", "output channels", 10).unwrap_err().to_string();
        assert_eq!(message, "w has 10 output channels, which do not divide by 3 chips");
    }
}
