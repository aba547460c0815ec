//! Every kernel compiles for every architecture, to PTX and to machine code; none spills, and products overlap.

mod support;

use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use planish_cuda::cache::{Defines, KernelCache};
use planish_cuda::kernels::{self, Define, Kernel};
use planish_cuda::nvrtc::Arch;

fn defines(variant: &[Define]) -> Defines {
    variant.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// PTX says nothing about inline assembly, which only the assembler reads: so machine code is made as well. What each
/// kernel takes is written to `kernels.tsv` in Cargo's folder for tests.
#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    let Some(cache) = support::cache() else { return };
    let jobs: Vec<(&Kernel, &[Define], Arch)> = kernels::ALL
        .iter()
        .flat_map(|kernel| kernel.variants.iter().map(move |variant| (kernel, *variant)))
        .flat_map(|(kernel, variant)| Arch::ALL.map(|arch| (kernel, variant, arch)))
        .filter(|(kernel, _, arch)| kernel.is_for(*arch))
        .collect();
    let (next, lines, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        while let Some((kernel, variant, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let compiled = match cache.get(kernel, &defines(variant), *arch) {
                Ok(compiled) => compiled,
                Err(error) => {
                    faults.lock().unwrap().push(error.to_string());
                    continue;
                }
            };
            let entries = compiled.ptx.matches(".entry ").count();
            if entries == 0 || entries != compiled.usage.len() || !compiled.cubin.starts_with(b"\x7fELF") {
                faults.lock().unwrap().push(format!("{} {variant:?} for {arch}: {entries} kernels", kernel.name));
            }
            for u in compiled.usage {
                let spills = u.spill_stores + u.spill_loads + u.stack;
                let line = format!(
                    "{}\t{variant:?}\t{arch}\t{}\t{}\t{spills}\t{}",
                    kernel.name, u.kernel, u.registers, u.shared
                );
                if u.serialised {
                    faults.lock().unwrap().push(format!("its wgmma do not overlap: {line}"));
                }
                if spills > 0 && !kernel.may_spill.contains(&u.kernel.as_str()) {
                    faults.lock().unwrap().push(format!("spills: {line}"));
                }
                lines.lock().unwrap().push(line);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut lines = lines.into_inner().unwrap();
    lines.sort();
    let mut table = String::from("file\tvariant\tarchitecture\tkernel\tregisters\tspilled bytes\tshared bytes\n");
    lines.iter().for_each(|line| writeln!(table, "{line}").unwrap());
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels.tsv"), table).unwrap();
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(lines.len() > 4 * kernels::ALL.len());
}

#[test]
fn a_kernel_that_does_not_compile_shows_the_compilers_words() {
    let Some(cache) = support::cache() else { return };
    let wrong = Kernel { text: "#include \"common.cuh\"\n__global__ void f() { no_such_thing(); }", ..kernels::CAST };
    let error = cache.get(&wrong, &Defines::new(), Arch::new(8, 0)).unwrap_err().to_string();
    assert!(error.contains("cast.cu") && error.contains("sm_80") && error.contains("no_such_thing"), "{error}");
    let error = cache.get(&kernels::CAST, &Defines::new(), Arch::new(8, 0)).unwrap_err().to_string();
    assert!(error.contains("cast.cu"), "{error}");
    let error = cache.get(&kernels::SAMPLING, &Defines::new(), Arch::new(1, 0)).unwrap_err().to_string();
    assert!(error.contains("sm_10"), "{error}");
}

#[test]
fn entries_are_kept_and_damaged_ones_made_again() {
    if support::cache().is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("new").join("kernels");
    let variant = defines(&[("S", "f32"), ("T", "bf16")]);
    let arch = Arch::new(8, 0);
    let cache = KernelCache::new(Some(dir.clone()));
    let first = cache.get(&kernels::CAST, &variant, arch).unwrap();
    let entries = || -> Vec<_> { std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let [path] = &entries()[..] else { panic!("{:?}", entries()) };
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(KernelCache::new(Some(dir.clone())).get(&kernels::CAST, &variant, arch).unwrap(), first);
    for damage in [bytes[..bytes.len() / 2].to_vec(), Vec::new(), vec![0; bytes.len()]] {
        std::fs::write(path, damage).unwrap();
        let again = cache.get(&kernels::CAST, &variant, arch).unwrap();
        assert_eq!((again.ptx, again.usage), (first.ptx.clone(), first.usage.clone()));
        assert!(std::fs::read(path).unwrap().len() == bytes.len(), "the entry is whole again");
    }
    assert_eq!(entries().len(), 1, "nothing is left over");
    let other = defines(&[("S", "bf16"), ("T", "f32")]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| KernelCache::new(Some(dir.clone())).get(&kernels::CAST, &other, arch).unwrap());
        }
    });
    assert_eq!(entries().len(), 2);
}

/// A file where the folder should be: kernels still compile, and only asking for the cache itself is an error.
#[test]
fn a_cache_that_cannot_be_written_costs_time_only() {
    if support::cache().is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("file");
    std::fs::write(&dir, "").unwrap();
    let cache = KernelCache::new(Some(dir));
    let variant = defines(&[("S", "f32"), ("T", "bf16")]);
    assert!(cache.get(&kernels::CAST, &variant, Arch::new(8, 0)).is_ok());
    let error = cache.precompile(&kernels::CAST, &variant, Arch::new(8, 0)).unwrap_err().to_string();
    assert!(error.contains("kernel cache"), "{error}");
}
