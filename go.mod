module ripstop

go 1.26.0
