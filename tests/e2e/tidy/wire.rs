//! The wire contract only grows: what `tests/golden/proto.fds` has, stays.
//!
//! After an addition, make the golden file anew with
//! `UPDATE_GOLDEN=1 cargo test -p integration-tests --test tidy`.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// Name of everything on the wire → what it is.
type Contract = BTreeMap<String, String>;

fn contract(descriptors: &[u8]) -> Contract {
    let set = FileDescriptorSet::decode(descriptors).expect("a descriptor set");
    let mut contract = Contract::new();
    for file in set.file {
        for message in &file.message_type {
            add_message(&mut contract, file.package(), message);
        }
        for enumeration in &file.enum_type {
            for value in &enumeration.value {
                let name = format!("{}.{}.{}", file.package(), enumeration.name(), value.number());
                contract.insert(name, value.name().to_owned());
            }
        }
        for service in &file.service {
            for method in &service.method {
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                let shape = format!(
                    "{} {} -> {} {}",
                    method.client_streaming(),
                    method.input_type(),
                    method.server_streaming(),
                    method.output_type()
                );
                contract.insert(name, shape);
            }
        }
    }
    contract
}

fn add_message(contract: &mut Contract, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    contract.insert(name.clone(), "message".to_owned());
    for field in &message.field {
        let repeated = field.label() == Label::Repeated;
        let shape =
            format!("{} {repeated} {:?} {}", field.name(), field.r#type(), field.type_name());
        contract.insert(format!("{name}.{}", field.number()), shape);
    }
    for nested in &message.nested_type {
        add_message(contract, &name, nested);
    }
}

/// What an older peer would stumble over.
fn broken(old: &Contract, new: &Contract) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, shape) in old {
        match new.get(name) {
            Some(found) if found == shape => {}
            Some(found) => complaints.push(format!("{name} was {shape:?}, is {found:?}")),
            None => complaints.push(format!("{name} ({shape:?}) is gone")),
        }
    }
    complaints
}

#[test]
fn the_wire_contract_only_grows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/proto.fds");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, proto::FILE_DESCRIPTOR_SET).expect("writable");
    }
    let old = contract(&std::fs::read(&path).expect("the golden file is committed"));
    let complaints = broken(&old, &contract(proto::FILE_DESCRIPTOR_SET));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(old.len() > 100, "the golden file holds the contract");
}

#[test]
fn a_changed_number_or_type_or_method_is_seen() {
    let old = contract(proto::FILE_DESCRIPTOR_SET);
    for (from, to) in [("priority", "prioritx"), ("Describe", "Describx")] {
        let mut bytes = proto::FILE_DESCRIPTOR_SET.to_vec();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .expect("the name is in the descriptors");
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        assert!(!broken(&old, &contract(&bytes)).is_empty(), "{from}");
    }
}
