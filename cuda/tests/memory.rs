//! The allocator over a device.

use std::sync::Arc;

use planish_cuda::driver::Stream;
use planish_cuda::emulator::Emulator;
use planish_cuda::memory::Pool;
use planish_cuda::{DType, Error};

fn pool() -> Arc<Pool> {
    Pool::new(Arc::new(Emulator::new((9, 0)).unwrap()))
}

const S: Stream = Stream(0);

#[test]
fn what_is_given_back_is_handed_out_again() {
    let pool = pool();
    let first = pool.alloc("a test", 1000, S).unwrap();
    let (ptr, free) = (first.ptr(), pool.driver().free_memory().unwrap());
    assert_eq!((first.bytes(), first.slice(DType::F32).len()), (1000, 250));
    drop(first);
    assert_eq!(pool.usage().in_use, 0);
    let again = pool.alloc("a test", 700, S).unwrap();
    assert_eq!((again.ptr(), pool.driver().free_memory().unwrap()), (ptr, free));
    // Another stream may not have it: the first one's work may still run.
    drop(again);
    let stream = pool.driver().create_stream().unwrap();
    assert_ne!(pool.alloc("a test", 1000, stream).unwrap().ptr(), ptr);
    let usage = pool.usage();
    assert_eq!((usage.in_use, usage.peak, usage.reserved, usage.peak_reserved), (0, 1024, 2048, 2048));
    pool.release().unwrap();
    assert_eq!((pool.usage().reserved, pool.usage().peak_reserved), (0, 2048));
    pool.reset_peak();
    assert_eq!((pool.usage().peak, pool.usage().peak_reserved), (0, 0));
}

#[test]
fn a_full_device_gives_up_what_is_kept_before_it_refuses() {
    let pool = pool();
    let total = pool.driver().properties().memory_bytes as usize;
    // Kept, and of another size than what is asked for next.
    drop(pool.alloc("kept", total * 3 / 4, S).unwrap());
    assert!(pool.usage().reserved > 0);
    let large = pool.alloc("large", total / 2, S).unwrap();
    match pool.alloc("the optimizer's state", total * 2 / 3, S) {
        Err(error @ Error::NoRoom { .. }) => {
            let words = error.to_string();
            assert!(words.starts_with("the optimizer's state needs"), "{words}");
            assert!(words.contains("in use by this program"), "{words}");
        }
        other => panic!("{other:?}"),
    }
    drop(large);
    pool.alloc("the optimizer's state", total * 2 / 3, S).unwrap();
}

#[test]
fn copies_are_checked() {
    let pool = pool();
    let mut buffer = pool.alloc("a test", 8, S).unwrap();
    buffer.upload(&[1u32, 2]).unwrap();
    assert_eq!(buffer.download::<u32>().unwrap(), [1, 2]);
    assert_eq!(buffer.download::<u64>().unwrap(), [2 << 32 | 1]);
    let error = buffer.upload(&[1u32, 2, 3]).unwrap_err().to_string();
    assert_eq!(error, "upload: the buffer should have 12 elements, not 8");
    buffer.fill(0xff).unwrap();
    assert_eq!(buffer.download::<u8>().unwrap(), [0xff; 8]);
    let slice = buffer.slice(DType::U8);
    assert_eq!(slice.part(3, 5).unwrap().len(), 5);
    assert!(slice.part(3, 6).is_err() && slice.part(usize::MAX, 2).is_err());
}
