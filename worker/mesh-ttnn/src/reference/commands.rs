//! How commands are issued, counted, recorded and replayed.
//!
//! While a trace is recorded nothing runs, as on the device: the tensors that a
//! recorded command makes hold nothing until the trace is executed, which writes
//! them in place. What the device cannot record is refused: transfers to and from
//! the host, and programs that were never run before and so are not compiled.
//!
//! A trace writes where its tensors were when it was recorded, also when their
//! memory has been given to others since. So what is allocated after a trace and
//! still there when it is executed is lost: the package only warns of that.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Debug, Write as _};
use std::sync::Arc;

use super::placement::Floor;
use super::refusal::Op;
use super::rounding::stored;
use super::tensor::{Chips, Data, Tensor, TensorSpec, Values, WeakTensor};
use crate::ops::{ProgramCounts, Result, TraceId};

/// One operation over tensors that are allocated.
pub(super) type Command = Box<dyn Fn() -> Result<()> + Send>;

/// An operation about to be issued.
pub(super) struct Call<'a> {
    pub(super) op: Op,
    pub(super) inputs: &'a [&'a Tensor],
    /// What the program depends on beside its operands' specs.
    pub(super) config: &'a dyn Debug,
}

/// The queue of commands of a mesh.
pub(super) struct Commands {
    pub(super) num_chips: usize,
    pub(super) floor: Floor,
    programs: HashSet<String>,
    log: Vec<String>,
    recording: Option<(TraceId, Vec<Command>)>,
    traces: BTreeMap<u32, Trace>,
    next_trace: u32,
    /// Tensors that were allocated while there were traces, oldest first, by how
    /// many had been allocated before.
    young: Vec<(u64, WeakTensor)>,
    num_allocated: u64,
}

/// What was recorded.
struct Trace {
    commands: Vec<Command>,
    /// How many tensors had been allocated when it was complete.
    num_allocated: u64,
}

impl Commands {
    pub(super) fn new(num_chips: usize, floor: Floor) -> Self {
        Self {
            num_chips,
            floor,
            programs: HashSet::new(),
            log: Vec::new(),
            recording: None,
            traces: BTreeMap::new(),
            next_trace: 0,
            young: Vec::new(),
            num_allocated: 0,
        }
    }

    /// Memory that nothing was written to yet.
    pub(super) fn allocate(&mut self, op: Op, spec: TensorSpec) -> Result<Tensor> {
        self.floor.check(op, &spec)?;
        let tensor = Tensor::allocate(spec);
        self.num_allocated += 1;
        if !self.traces.is_empty() {
            self.young.push((self.num_allocated, tensor.downgrade()));
        }
        Ok(tensor)
    }

    /// The same operation on every chip, of what that chip holds.
    pub(super) fn on_each_chip<const N: usize>(
        &mut self,
        call: &Call<'_>,
        outputs: [TensorSpec; N],
        compute: impl Fn(&[&Values]) -> Result<[Data; N]> + Send + 'static,
    ) -> Result<[Tensor; N]> {
        self.across_chips(call, outputs, move |inputs: &[Chips]| {
            let mut done: Vec<[Arc<Values>; N]> = Vec::new();
            for chip in 0..inputs[0].len() {
                // A chip that holds what an earlier one holds gets its results.
                let same = |earlier: &usize| {
                    inputs.iter().all(|input| Arc::ptr_eq(&input[*earlier], &input[chip]))
                };
                let results = if let Some(earlier) = (0..chip).find(same) {
                    done[earlier].clone()
                } else {
                    let values: Vec<&Values> = inputs.iter().map(|input| &*input[chip]).collect();
                    let mut specs = outputs.into_iter();
                    compute(&values)?.map(|data| {
                        let spec = specs.next().expect("as many specs as results");
                        Arc::new(Values::new(stored(&spec, data)))
                    })
                };
                done.push(results);
            }
            Ok(std::array::from_fn(|n| done.iter().map(|results| results[n].clone()).collect()))
        })
    }

    /// One operation of all chips together. What `compute` gives is rounded
    /// already.
    pub(super) fn across_chips<const N: usize>(
        &mut self,
        call: &Call<'_>,
        outputs: [TensorSpec; N],
        compute: impl Fn(&[Chips]) -> Result<[Chips; N]> + Send + 'static,
    ) -> Result<[Tensor; N]> {
        let op = call.op;
        let mut results = Vec::with_capacity(N);
        for spec in outputs {
            results.push(self.allocate(op, spec)?);
        }
        let inputs: Vec<Tensor> = call.inputs.iter().map(|input| (*input).clone()).collect();
        let mut results = results.into_iter();
        let results = outputs.map(|_| results.next().expect("as many results as specs"));
        let written = results.clone();
        let command = move || {
            let inputs: Vec<Chips> =
                inputs.iter().map(|input| input.chips(op)).collect::<Result<_>>()?;
            for (result, chips) in written.iter().zip(compute(&inputs)?) {
                result.store(chips);
            }
            Ok(())
        };
        self.submit(call, Box::new(command))?;
        Ok(results)
    }

    /// Changes `target` in place, chip by chip.
    pub(super) fn in_place(
        &mut self,
        call: &Call<'_>,
        target: &Tensor,
        change: impl Fn(&mut Values, &[&Values]) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let op = call.op;
        let inputs: Vec<Tensor> = call.inputs.iter().map(|input| (*input).clone()).collect();
        let target = target.clone();
        let command = move || {
            let inputs: Vec<Chips> =
                inputs.iter().map(|input| input.chips(op)).collect::<Result<_>>()?;
            target.update(op, |chip, values| {
                let inputs: Vec<&Values> = inputs.iter().map(|input| &*input[chip]).collect();
                change(values, &inputs)
            })
        };
        self.submit(call, Box::new(command))
    }

    fn submit(&mut self, call: &Call<'_>, command: Command) -> Result<()> {
        self.log(call.op);
        let program = program_key(call);
        if let Some((_, recorded)) = &mut self.recording {
            call.op.needs(
                self.programs.contains(&program),
                "a program that was run before the trace is recorded",
                "one that is not compiled yet",
            )?;
            recorded.push(command);
            return Ok(());
        }
        command()?;
        self.programs.insert(program);
        Ok(())
    }

    /// A transfer to or from the host, or a wait: not while recording.
    pub(super) fn host_access(&mut self, op: Op) -> Result<()> {
        self.log(op);
        let recording = self.recording.is_some();
        op.needs(!recording, "a mesh that records no trace", "one that does")
    }

    pub(super) fn log(&mut self, op: Op) {
        self.log.push(op.0.to_owned());
    }

    pub(super) fn calls(&self) -> &[String] {
        &self.log
    }

    pub(super) fn clear_calls(&mut self) {
        self.log.clear();
    }

    pub(super) fn program_counts(&self) -> ProgramCounts {
        ProgramCounts { programs: self.programs.len(), kernels: 0 }
    }
}

/// Traces.
impl Commands {
    pub(super) fn begin_trace(&mut self) -> Result<TraceId> {
        let op = Op("begin_trace_capture");
        self.host_access(op)?;
        let trace = TraceId(self.next_trace);
        self.next_trace += 1;
        self.recording = Some((trace, Vec::new()));
        Ok(trace)
    }

    pub(super) fn end_trace(&mut self, trace: TraceId) -> Result<()> {
        let op = Op("end_trace_capture");
        self.log(op);
        match self.recording.take() {
            Some((recorded, commands)) if recorded == trace => {
                let num_allocated = self.num_allocated;
                self.traces.insert(trace.0, Trace { commands, num_allocated });
                Ok(())
            }
            recording => {
                let found = recording.as_ref().map(|(recorded, _)| *recorded);
                self.recording = recording;
                Err(op.refusal(
                    format_args!("{trace:?} to be the trace that is recorded"),
                    format_args!("{found:?}"),
                ))
            }
        }
    }

    pub(super) fn execute_trace(&mut self, trace: TraceId) -> Result<()> {
        let op = Op("execute_trace");
        self.host_access(op)?;
        let captured = self.traces.get(&trace.0);
        let captured = captured.ok_or_else(|| op.refusal("a trace that was captured", trace.0))?;
        self.young.retain(|(_, tensor)| tensor.is_alive());
        for (_, tensor) in self.young.iter().filter(|(age, _)| *age > captured.num_allocated) {
            tensor.overwrite();
        }
        captured.commands.iter().try_for_each(|command| command())
    }

    pub(super) fn release_trace(&mut self, trace: TraceId) -> Result<()> {
        let op = Op("release_trace");
        self.host_access(op)?;
        let released = self.traces.remove(&trace.0);
        op.needs(released.is_some(), "a trace that was captured", trace.0)
    }
}

impl Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands")
            .field("num_chips", &self.num_chips)
            .field("programs", &self.programs.len())
            .field("traces", &self.traces.len())
            .finish_non_exhaustive()
    }
}

/// What a program is compiled for: the operation, its operands' specs and its
/// configuration.
fn program_key(call: &Call<'_>) -> String {
    let mut key = call.op.0.to_owned();
    for input in call.inputs {
        // Writing to a string cannot fail.
        let _ = write!(key, " {:?}", input.spec());
    }
    let _ = write!(key, " {:?}", call.config);
    key
}
