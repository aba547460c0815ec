//! The emulator as a driver: memory, streams, events, graphs, launches and what they refuse.

mod emulator_support;

use emulator_support::{Device, STREAM, kernel};
use planish_cuda::Error;
use planish_cuda::driver::{Arg, DevicePtr, Driver, Event, Function, Graph, Image, Launch, Module, Stream};
use planish_cuda::emulator::{Emulator, Watch};

/// x[i] += by, in blocks of 32.
fn adder() -> String {
    kernel(
        ".param .u64 x, .param .u32 by",
        ".reg .b32 %r<6>; .reg .b64 %x, %d; .shared .align 4 .b8 unused[1024];
         ld.param.u64 %x, [x]; ld.param.u32 %r1, [by]; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %tid.x;
         mad.lo.u32 %r4, %r2, 32, %r3; mul.wide.u32 %d, %r4, 4; add.u64 %x, %x, %d;
         ld.global.u32 %r5, [%x]; add.u32 %r5, %r5, %r1; st.global.u32 [%x], %r5; mov.u32 %r5, unused; ret;",
    )
}

#[test]
fn a_warp_can_be_watched() {
    let emulator = Emulator::new((9, 0)).unwrap().with_watch(Watch { block: [1, 0, 0], warp: 0, most: 9 });
    // One instruction a line, as NVRTC writes it.
    let text = adder().replace("; ", ";\n");
    let add = emulator.function(emulator.load(Image::Ptx(&text)).unwrap(), "k").unwrap();
    let x = emulator.alloc(256, STREAM).unwrap();
    emulator.upload(x, &[2; 256], STREAM).unwrap();
    let launch = Launch { grid: [2, 1, 1], block: [32, 1, 1], cluster: [1; 3], shared_bytes: 0 };
    emulator.launch(add, &launch, &[Arg::Ptr(x), Arg::U32(5)], STREAM).unwrap();
    let traces = emulator.take_traces();
    assert_eq!(traces.len(), 1);
    let (kernel, steps) = (&traces[0].kernel, &traces[0].steps);
    assert!(kernel == "k" && steps.len() == 9 && traces[0].cut);
    let wrote = |opcode: &str| {
        let step = steps.iter().find(|step| step.at.text.starts_with(opcode)).unwrap();
        assert_eq!(step.lanes, u32::MAX);
        (step.written[0].name.clone(), step.written[0].value(3))
    };
    // Lane 3 of block 1 is element 35.
    assert_eq!(wrote("mad.lo.u32"), ("%r4".into(), "35".into()));
    assert_eq!(wrote("mul.wide.u32"), ("%d".into(), "140".into()));
    assert_eq!(wrote("add.u64"), ("%x".into(), format!("{:#x}", x.0 + 140)));
    assert_eq!(wrote("add.u32"), ("%r5".into(), "0x2020207".into()));
    assert!(emulator.take_traces().is_empty());
}

#[test]
fn graphs_replay_what_was_captured() {
    let device = Device::new(&adder());
    let e = &device.emulator;
    let (x, y) = (device.u32s(&[1; 64]), device.u32s(&[0; 64]));
    let (stream, side) = (e.create_stream().unwrap(), e.create_stream().unwrap());
    let add = e.function(device.module, "k").unwrap();
    let launch = Launch { grid: [2, 1, 1], block: [32, 1, 1], cluster: [1; 3], shared_bytes: 0 };
    e.begin_capture(stream).unwrap();
    e.launch(add, &launch, &[Arg::Ptr(x), Arg::U32(5)], stream).unwrap();
    // Another stream joins by an event.
    let fork = e.record(stream).unwrap();
    e.wait(side, fork).unwrap();
    e.copy(y, x, 256, side).unwrap();
    let join = e.record(side).unwrap();
    e.wait(stream, join).unwrap();
    e.launch(add, &launch, &[Arg::Ptr(y), Arg::I32(-1)], stream).unwrap();
    assert!(matches!(e.download(&mut [0; 4], x, stream), Err(Error::Driver { call: "download", .. })));
    assert!(e.alloc(4, stream).is_err() && e.synchronize(stream).is_err() && e.begin_capture(stream).is_err());
    let graph = e.end_capture(stream).unwrap();
    // Nothing has been done.
    assert_eq!(device.read_u32(x, 64), [1; 64]);
    for round in 1..=3 {
        e.launch_graph(graph, stream).unwrap();
        assert_eq!(device.read_u32(x, 64), [1 + 5 * round; 64]);
        assert_eq!(device.read_u32(y, 64), [5 * round; 64]);
    }
    // The side stream is free again.
    e.synchronize(side).unwrap();
    e.destroy_graph(graph).unwrap();
    assert_eq!(e.launch_graph(graph, stream), Err(Error::Handle { what: "graph", handle: graph.0 }));
}

#[test]
fn memory() {
    let e = Emulator::new((9, 0)).unwrap().with_memory(1000);
    assert_eq!(e.free_memory(), Ok(1000));
    let a = e.alloc(600, STREAM).unwrap();
    assert_eq!(a.0 % 256, 0);
    assert_eq!(e.alloc(401, STREAM), Err(Error::OutOfMemory { asked: 401, free: 400, total: 1000 }));
    e.fill(DevicePtr(a.0 + 3), 7, 500, STREAM).unwrap();
    e.upload(DevicePtr(a.0 + 5), &[1, 2, 3], STREAM).unwrap();
    let b = e.alloc(400, STREAM).unwrap();
    e.copy(b, DevicePtr(a.0 + 3), 17, STREAM).unwrap();
    let mut bytes = [0; 6];
    e.download(&mut bytes, b, STREAM).unwrap();
    assert_eq!(bytes, [7, 7, 1, 2, 3, 7]);
    assert!(e.upload(DevicePtr(a.0 + 599), &[1, 2], STREAM).is_err());
    assert!(e.copy(a, DevicePtr(a.0 + 8), 16, STREAM).is_err());
    e.free(a, STREAM).unwrap();
    assert_eq!(e.free_memory(), Ok(600));
    assert_eq!(e.free(a, STREAM), Err(Error::Handle { what: "allocation", handle: a.0 }));
    let error = e.download(&mut bytes, a, STREAM).unwrap_err().to_string();
    assert!(error.contains("given back"), "{error}");
    // Nothing at all is fine.
    let nothing = e.alloc(0, STREAM).unwrap();
    e.upload(nothing, &[], STREAM).unwrap();
    e.free(nothing, STREAM).unwrap();
}

#[test]
fn launches_are_checked() {
    let device = Device::new(&adder());
    let e = &device.emulator;
    let x = device.u32s(&[0; 64]);
    let good = Launch { grid: [1; 3], block: [32, 1, 1], cluster: [1; 3], shared_bytes: 0 };
    let function = e.function(device.module, "k").unwrap();
    let refuses = |launch: Launch, args: &[Arg<'_>], words: &str| {
        let error = e.launch(function, &launch, args, STREAM).unwrap_err();
        assert!(matches!(error, Error::Launch { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let args = [Arg::Ptr(x), Arg::U32(1)];
    refuses(good, &args[..1], "2 parameters, and 1 were given");
    refuses(good, &[Arg::Ptr(x), Arg::U64(1)], "parameter 1 has 4 bytes, and 8 were given");
    refuses(good, &[Arg::Bytes(&[0; 7]), Arg::U32(1)], "parameter 0 has 8 bytes, and 7");
    refuses(Launch { block: [1025, 1, 1], ..good }, &args, "1024 threads");
    refuses(Launch { block: [0, 1, 1], ..good }, &args, "without threads");
    refuses(Launch { block: [u32::MAX; 3], ..good }, &args, "1024 threads");
    refuses(Launch { grid: [1, 65536, 1], ..good }, &args, "too large");
    refuses(Launch { cluster: [2, 1, 1], ..good }, &args, "no clusters");
    // 163 KiB, of which the kernel itself takes one.
    refuses(Launch { shared_bytes: 162 * 1024 + 1, ..good }, &args, "166913 bytes of shared memory, of which 1024");
    e.launch(function, &Launch { shared_bytes: 162 * 1024, ..good }, &args, STREAM).unwrap();
    assert_eq!(e.function(device.module, "j"), Err(Error::NoKernel { name: "j".into() }));
    let fixed = kernel("", "ret;").replace("k()", "k() .reqntid 32, 2, 1 .minnctapersm 1");
    let device = Device::new(&fixed);
    device.launch("k", [1; 3], [32, 2, 1], 0, &[]).unwrap();
    assert!(device.launch("k", [1; 3], [64, 1, 1], 0, &[]).is_err());
    let most = kernel("", "ret;").replace("k()", "k() .maxntid 64, 1, 1");
    assert!(Device::new(&most).launch("k", [1; 3], [65, 1, 1], 0, &[]).is_err());
}

#[test]
fn handles_are_checked() {
    let e = Emulator::new((8, 0)).unwrap();
    let bad = Stream(77);
    assert_eq!(e.alloc(1, bad), Err(Error::Handle { what: "stream", handle: 77 }));
    assert!(e.destroy_stream(STREAM).is_err() && e.record(bad).is_err() && e.end_capture(STREAM).is_err());
    assert!(e.wait(STREAM, Event(3)).is_err() && e.destroy_event(Event(3)).is_err());
    assert!(e.unload(Module(3)).is_err() && e.function(Module(3), "k").is_err());
    assert!(e.destroy_graph(Graph(3)).is_err());
    let launch = Launch { grid: [1; 3], block: [1; 3], cluster: [1; 3], shared_bytes: 0 };
    assert_eq!(e.launch(Function(9), &launch, &[], STREAM), Err(Error::Handle { what: "function", handle: 9 }));
    let module = e.load(Image::Ptx(&kernel("", "ret;"))).unwrap();
    let function = e.function(module, "k").unwrap();
    e.launch(function, &launch, &[], STREAM).unwrap();
    e.unload(module).unwrap();
    assert!(e.launch(function, &launch, &[], STREAM).is_err());
    let (begin, end) = (e.record(STREAM).unwrap(), e.record(STREAM).unwrap());
    assert!(e.elapsed(begin, end).unwrap() >= 0.0 && e.elapsed(end, begin).unwrap() <= 0.0);
    assert!(e.load(Image::Cubin(&[])).is_err());
}

#[test]
fn devices() {
    for (capability, shared) in [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227)] {
        let e = Emulator::new(capability).unwrap();
        assert_eq!(e.properties().shared_bytes_per_block, shared * 1024);
        assert!(e.properties().wants_ptx);
    }
    let error = Emulator::new((7, 5)).unwrap_err().to_string();
    assert!(error.contains("7.5 is not emulated"), "{error}");
    let hopper = kernel("", "ret;").replace("sm_80", "sm_90a");
    assert!(Emulator::new((8, 0)).unwrap().load(Image::Ptx(&hopper)).is_err());
    assert!(Emulator::new((9, 0)).unwrap().load(Image::Ptx(&hopper)).is_ok());
}

#[test]
fn reports_count() {
    // Two threads to a bank, and a stride of eight words.
    let text = kernel(
        ".param .u64 x",
        ".reg .b32 %t, %s, %r; .reg .b64 %x, %d; .shared .align 4 .b8 words[256];
         ld.param.u64 %x, [x]; mov.u32 %t, %tid.x; shl.b32 %s, %t, 3; mov.u32 %r, words; add.u32 %s, %s, %r;
         st.shared.u32 [%s], %t; ld.shared.u32 %r, [%s];
         mul.wide.u32 %d, %t, 32; add.u64 %x, %x, %d; st.global.u32 [%x], %r; bar.sync 0; ret;",
    );
    let device = Device::with(Emulator::new((8, 0)).unwrap().with_reports(), &text);
    let x = device.empty(1024);
    device.launch("k", [1; 3], [32, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
    let report = device.emulator.last_report().unwrap();
    assert_eq!((report.shared.requests, report.shared.used, report.shared.least), (2, 4, 2));
    assert_eq!((report.global.requests, report.global.used, report.global.least), (1, 32, 4));
    assert_eq!((report.warp_instructions, report.thread_instructions, report.barriers), (12, 12 * 32, 1));
    let text = report.to_string();
    assert!(text.contains("32 sectors for 4: PTX line") && text.contains("2 passes for 1"), "{text}");
    assert_eq!(device.emulator.take_reports(), [report]);
    assert!(device.emulator.take_reports().is_empty());
}
